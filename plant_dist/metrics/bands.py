"""Results by label-frequency band: how well rare labels fare, and labels never seen in training.

A band is a set of labels chosen by their number of training documents. Must not know thresholds;
it is handed the tally of the decisions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plant_dist.metrics.classification import LabelTally, macro_scores, micro_scores
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.ranking import RankingSums
from plant_dist.metrics.retained import Predictions

# Inclusive, and finest where documents are few: there planting has to show its worth.
BANDS = ((0, 0), (1, 5), (6, 10), (11, 50), (51, 100), (101, None))


@dataclass(frozen=True)
class BandResult:
    """One band of labels on one split.

    name: the range of training documents, or "unseen": labels of band 0 that the split holds.
    labels, labels_present: labels of the band, and those with gold in the split.
    gold, documents: gold occurrences of the band's labels, and documents that hold one.
    metrics: `r@k`, the share of the band's gold among the first k of the overall ranking;
        `within_p@k`, `within_psp@k`, `within_ndcg@k`, `within_map`: the retained ranking restricted
        to the band's labels, over `documents`; `macro_auc` over labels that have one; and where
        decisions were made `micro_*` and, over labels_present, `macro_*`. NaN where nothing counts.
    """

    name: str
    labels: int
    labels_present: int
    gold: int
    documents: int
    metrics: dict[str, float]


def band_labels(
    train_frequency: NDArray[np.int64], present: NDArray[np.bool_]
) -> dict[str, NDArray[np.bool_]]:
    """Return the labels (L,) of each band by name, from unseen to frequent."""
    # Within band 0: the labels on which zero-shot can be judged at all.
    bands = {"unseen": (train_frequency == 0) & present}
    for low, high in BANDS:
        top = np.inf if high is None else high
        bands[band_name(low, high)] = (train_frequency >= low) & (train_frequency <= top)
    return bands


def band_numbers(train_frequency: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return (L,) the place of each label's band in `BANDS`."""
    # Bands lie side by side, so that the last one that has begun is the label's.
    begins = np.array([low for low, _ in BANDS])
    return (np.searchsorted(begins, train_frequency, side="right") - 1).astype(np.int8)


def band_name(low: int, high: int | None) -> str:
    """The range of training documents in words: `0`, `1-5`, `>100`."""
    if high is None:
        return f">{low - 1}"
    return f"{low}" if low == high else f"{low}-{high}"


def band_results(
    predictions: Predictions,
    train_frequency: NDArray[np.int64],
    ks: NDArray[np.int64],
    auc: NDArray[np.float64],
    tally: LabelTally | None,
    inverse_propensity: NDArray[np.float64],
) -> tuple[BandResult, ...]:
    """Measure every band.

    Args:
        predictions: retained predictions of the split.
        train_frequency: (L,) training documents of each label.
        ks: cut-offs.
        auc: (L,) AUC of each label, NaN where it has none.
        tally: the decisions, if any were made.
        inverse_propensity: (L,) of all labels, as for the whole split.
    """
    present = np.bincount(predictions.gold.ids, minlength=len(train_frequency)) > 0
    return tuple(
        _band(name, labels, predictions, RankingSums(ks.tolist(), inverse_propensity), auc, tally)
        for name, labels in band_labels(train_frequency, present).items()
    )


def _band(
    name: str,
    labels: NDArray[np.bool_],
    predictions: Predictions,
    within: RankingSums,
    auc: NDArray[np.float64],
    tally: LabelTally | None,
) -> BandResult:
    # Gold outside the band neither counts nor takes places within it.
    entries = labels[predictions.gold.ids]
    gold = predictions.gold.among(entries)
    ranks = predictions.gold_ranks[entries]
    within.add(gold, _ranks_within(predictions, labels)[entries])
    metrics = _overall_recall(ranks, within.ks) | {
        f"within_{metric}": value
        for metric, value in within.results().items()
        if metric.split("@")[0] in ("p", "psp", "ndcg", "map")
    }
    areas = auc[labels & ~np.isnan(auc)]
    metrics["macro_auc"] = float(areas.mean()) if len(areas) else float("nan")
    if tally is not None:
        metrics |= _decisions(tally, labels, gold)
    present = len(np.unique(gold.ids))
    return BandResult(name, int(labels.sum()), present, len(gold.ids), within.documents, metrics)


def _overall_recall(ranks: NDArray[np.int32], ks: NDArray[np.int64]) -> dict[str, float]:
    found = (ranks > 0)[:, None] & (ranks[:, None] <= ks)
    shares = found.mean(axis=0) if len(ranks) else np.full(len(ks), np.nan)
    return {f"r@{k}": float(share) for k, share in zip(ks, shares, strict=True)}


def _ranks_within(predictions: Predictions, labels: NDArray[np.bool_]) -> NDArray[np.int32]:
    """Rank gold labels among the retained labels of the band; 0 for one not retained."""
    parts = []
    for block in predictions.blocks():
        # Padding (label -1) stands last in its row, so no place that is read counts it.
        places_DN = np.cumsum(labels[block.label_ids], axis=1, dtype=np.int32)
        kept = block.kept_gold
        ranks = np.zeros(len(kept), dtype=np.int32)
        # Place in the band = labels of the band at or before its place in the whole ranking.
        ranks[kept] = places_DN[block.gold.rows[kept], block.gold_ranks[kept] - 1]
        parts.append(ranks)
    return np.concatenate(parts)


def _decisions(tally: LabelTally, labels: NDArray[np.bool_], gold: Gold) -> dict[str, float]:
    """F1 of the band's labels; a band without gold in the split has none."""
    banded = tally.among(labels)
    # Macro over labels present: absent ones would make every rare band look like 0.
    scores = micro_scores(banded) | macro_scores(banded.among(banded.present))
    return scores if len(gold.ids) else dict.fromkeys(scores, float("nan"))
