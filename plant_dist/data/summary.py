"""What a prepared dataset is, in numbers: written to statistics.json and shown to the user.

Works on integer arrays only. Counts are of documents unless their name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from plant_dist.data.csr import Csr, Int64
from plant_dist.data.records import SPLITS
from plant_dist.data.segments import Segmentation


def describe_groups(split: Mapping[str, Any]) -> str:
    """Say how many groups (patients, source packages) each split has, and whether any has two.

    Args:
        split: the section `split` of the statistics.
    """
    if crossing := split["groups_across_splits"]:
        return f"{crossing} groups cross a split of the corpus; its test may be too easy"
    if not split.get("grouped", True):
        return "groups: none given (data.group_column); each document is one of its own"
    groups = ", ".join(f"{count:,} {name}" for name, count in split["groups"].items())
    return f"groups: {groups}; none stands in two splits"


def describe_labels(labels: Mapping[str, Csr], label_count: int, declared: int) -> dict[str, Any]:
    """Describe the label space and its use.

    Args:
        labels: a `Csr` of label indices per split.
        label_count: size L of the label space.
        declared: how many of them the corpus's own label list holds.

    Returns:
        Among others `unseen`: per split, labels without training documents that occur there, and
        how many occurrences they make.
    """
    used = {
        split: np.bincount(rows.values, minlength=label_count) for split, rows in labels.items()
    }
    seen = used["train"] > 0
    unseen = {}
    for split in SPLITS[1:]:
        occurrences, total = int(used[split][~seen].sum()), int(used[split].sum())
        # Occurrences beside labels: many unseen labels may make up very little of the gold.
        unseen[split] = {
            "labels": int((used[split][~seen] > 0).sum()),
            "occurrences": occurrences,
            "share_of_occurrences": occurrences / total if total else 0.0,
        }
    return {
        "total": label_count,
        "declared": declared,
        "only_in_documents": label_count - declared,
        "with_training_documents": int(seen.sum()),
        "unseen": unseen,
    }


def describe_ignored(labels: Csr, ignored: Csr, label_count: int) -> dict[str, int]:
    """Count the pairs of document and label whose score does not count, and the gold among them.

    Args:
        labels, ignored: label indices by document, no label twice in a row.
        label_count: L.
    """
    # A pair as one number; int64, so that row · L cannot overflow.
    gold, left_out = (rows.owners() * label_count + rows.values for rows in (labels, ignored))
    return {"pairs": len(ignored.values), "gold": len(np.intersect1d(gold, left_out))}


def describe_documents(
    labels: Mapping[str, Csr],
    tokens: Mapping[str, Int64],
    max_tokens: int | None,
    segmentation: Segmentation,
) -> dict[str, Any]:
    """Describe the documents of each split.

    Args:
        labels: label indices per split.
        tokens: per split (N,) tokens of each document before cutting.
        max_tokens: documents are cut after so many.
        segmentation: how documents become segments.
    """
    return {split: _describe_split(labels[split], tokens[split], max_tokens, segmentation)
            for split in labels}  # fmt: skip


def _describe_split(
    labels: Csr, tokens: Int64, max_tokens: int | None, segmentation: Segmentation
) -> dict[str, Any]:
    # What a run reads is what is left after cutting; `cut` says how many lost their end.
    kept = tokens if max_tokens is None else np.minimum(tokens, max_tokens)
    return {
        "documents": labels.size,
        "without_labels": int((labels.lengths() == 0).sum()),
        "without_tokens": int((tokens == 0).sum()),
        "cut": int((kept < tokens).sum()),
        "segments": int(segmentation.counts(kept).sum()),
        "labels_per_document": _spread(labels.lengths()),
        "tokens_per_document": _spread(kept),
    }


def _spread(values: Int64) -> dict[str, float]:
    if not len(values):
        return {"mean": 0.0, "median": 0.0, "max": 0}
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "max": int(values.max()),
    }
