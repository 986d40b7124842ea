"""A corpus becomes a prepared dataset: splits, label space, tokens, Arrow files, statistics.

Writes into a folder that the caller makes, and renames when all is well. Must not know what a
stage, a manifest or a model is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from plant_dist.artifacts import write_json
from plant_dist.config.schema import DataConfig, TokensConfig
from plant_dist.data.csr import Csr, Int8, Int64, csr_from_column, write_column
from plant_dist.data.duplicates import find_duplicates
from plant_dist.data.expected import Found, check_expected, compare_counts, describe_count
from plant_dist.data.gather import Gathered, gather
from plant_dist.data.prepared import (
    ARRAYS,
    COLUMNS,
    DOCUMENTS,
    IGNORED,
    LABEL_SPACE,
    SPLIT_IDS,
    STATISTICS,
    TOKENIZER,
    PreparedDataset,
)
from plant_dist.data.records import PLANTING_SET, SPLITS, Corpus
from plant_dist.data.segments import Segmentation
from plant_dist.data.splits import (
    PLANTING,
    TRAIN,
    UNSAID,
    VALIDATION,
    assign_splits,
    draw_subset,
    groups_across_splits,
    planting_rows,
)
from plant_dist.data.summary import (
    describe_documents,
    describe_groups,
    describe_ignored,
    describe_labels,
)
from plant_dist.data.tokens import encode_corpus
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import ConfigError, DataError
from plant_dist.logs import get_logger

_SCRATCH = "gathered.arrow"
_log = get_logger(__name__)


def prepare_dataset(
    corpus: Corpus,
    data: DataConfig,
    tokens: TokensConfig,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    seed: int,
) -> PreparedDataset:
    """Write a corpus as a prepared dataset.

    Args:
        corpus: what to read.
        data: the split settings, `train_documents`, `planting_corpus`, `empty_text` and `expected`
            are read.
        tokens: length and overlap of segments, cutting, worker processes.
        tokenizer: a fast tokenizer; saved beside the documents.
        folder: an empty folder, written into.
        seed: of made splits and of the training subset.

    Raises:
        DataError: the corpus breaks a rule (see `gather`), lacks a split that it should give, or
            has no training document or no training label.
        ConfigError: the split fractions or the segment sizes are impossible.
    """
    segmentation = Segmentation.of(tokens, tokenizer)
    check_expected(data.expected)
    # Labels first: a mistake there shows before the long read.
    declared = LabelSpace.create(corpus.labels())
    gathered = gather(corpus, folder / _SCRATCH, keep_empty=data.empty_text == "keep")
    space = declared.extended(gathered.label_ids)
    coded = _label_columns(gathered, space)
    labels = csr_from_column(coded.column("labels"))
    splits = _split(gathered, labels, data, seed)
    # UNSAID rows, left out by `train_documents`, are in no split from here on.
    rows = {name: np.flatnonzero(splits == code) for code, name in enumerate(SPLITS)}
    labels_by_split = {name: labels.take(rows[name]) for name in SPLITS}
    # After the subset is drawn: planting must not know documents that are left out.
    ignored = csr_from_column(coded.column("ignored"))
    frequency = _training_frequency(labels_by_split["train"], len(space), corpus)
    planting, struck = planting_rows(splits, gathered.groups)
    documents, full_tokens = _documents(gathered, coded, tokenizer, tokens)
    tokens_by_split = {name: full_tokens[rows[name]] for name in SPLITS}
    groups_by_split = {name: gathered.groups[rows[name]] for name in SPLITS}
    for name in SPLITS:
        _write_split(documents.select(rows[name]), folder, name)
        ignored.take(rows[name]).save(folder / ARRAYS / name, IGNORED)
    if len(planting):
        _write_split(documents.select(planting), folder, PLANTING_SET)
    space.with_frequency(frequency).save(folder / LABEL_SPACE)
    tokenizer.save_pretrained(str(folder / TOKENIZER))
    split = _describe_split(gathered, splits, data, seed)
    statistics = {
        "corpus": corpus.describe(),
        "split": split,
        "labels": describe_labels(labels_by_split, len(space), len(declared)),
        "documents": describe_documents(
            labels_by_split, tokens_by_split, tokens.max_document_tokens, segmentation
        ),
        "ignored": {
            name: describe_ignored(labels_by_split[name], ignored.take(rows[name]), len(space))
            for name in SPLITS
        },
        PLANTING_SET: _describe_planting(data, labels.take(planting), struck),
        "duplicates": find_duplicates(gathered.text_keys, splits, gathered.identify),
        "expected": compare_counts(
            data.expected,
            Found(labels_by_split, tokens_by_split, len(space), groups_by_split,
                  lambda name: _saved(folder, name).column("text"),
                  lent=split["validation_taken_from_train"]),
        ),
    }  # fmt: skip
    _announce(statistics)
    _announce_nameless(space, len(declared))
    # Last, because a folder without it is no prepared dataset.
    write_json(folder / STATISTICS, statistics)
    (folder / _SCRATCH).unlink()
    return PreparedDataset.load(folder)


def _label_columns(gathered: Gathered, space: LabelSpace) -> Any:
    """Return an Arrow table of labels and evidence, as indices of the label space."""
    table = gathered.table()
    # A label's number of first sight becomes its index; one gather renames them all.
    index = space.indices(gathered.label_ids)
    labels, evidence, ignored = (
        csr_from_column(table.column(name)) for name in ("labels", "evidence_label", "ignored")
    )
    return pa.table(
        {
            "labels": _list_array(Csr(labels.offsets, index[labels.values]).sorted_rows()),
            "evidence_label": _list_array(Csr(evidence.offsets, index[evidence.values])),
            "evidence_start": table.column("evidence_start"),
            "evidence_end": table.column("evidence_end"),
            "ignored": _list_array(Csr(ignored.offsets, index[ignored.values]).sorted_rows()),
        }
    )


def _training_frequency(labels: Csr, label_count: int, corpus: Corpus) -> Int64:
    """Return (L,) training documents of each label."""
    frequency = np.bincount(labels.values, minlength=label_count)
    if not frequency.any():
        raise DataError(
            f"no training document carries a label ({corpus.describe()}); check "
            "data.labels_column and data.split_column"
        )
    return frequency


def _list_array(rows: Csr) -> Any:
    return pa.ListArray.from_arrays(pa.array(rows.offsets, pa.int32()), pa.array(rows.values))


def _split(gathered: Gathered, labels: Csr, data: DataConfig, seed: int) -> Int8:
    """Return (N,) splits; `UNSAID` for training documents that `train_documents` leaves out."""
    unsaid = np.flatnonzero(gathered.splits == UNSAID)
    if data.split == "given" and len(unsaid):
        raise DataError(
            f"document {gathered.identify(int(unsaid[0]))!r} and {len(unsaid) - 1} more are in no "
            f"split: column {data.split_column!r} (data.split_column) is absent or empty; fill "
            "it, or set data.split: random"
        )
    # Stratifying needs the labels; it sees indices, never texts.
    splits = assign_splits(data, gathered.splits, gathered.groups, labels, seed)
    if data.planting_corpus == "experiment":
        splits = np.where(splits == PLANTING, UNSAID, splits).astype(np.int8)
    train = np.flatnonzero(splits == TRAIN)
    if not len(train):
        raise DataError(
            f"none of the {len(splits)} documents is for training; check data.split_column or "
            "set data.split: random"
        )
    if data.train_documents is not None and data.train_documents < len(train):
        if (splits == PLANTING).any():
            raise ConfigError(
                f"data.train_documents is {data.train_documents}, but planting would count the "
                "training split of the full corpus; set data.planting_corpus=experiment"
            )
        splits = splits.copy()
        splits[np.setdiff1d(train, draw_subset(train, data.train_documents, seed))] = UNSAID
    return splits


def _documents(
    gathered: Gathered, coded: Any, tokenizer: PreTrainedTokenizerBase, tokens: TokensConfig
) -> tuple[datasets.Dataset, Int64]:
    """Return all documents in corpus order with columns `COLUMNS`, and their uncut lengths."""
    texts = datasets.Dataset.from_file(str(gathered.path))
    # The whole corpus in its own order: other seeds, splits and subsets find the same cache.
    encoded = encode_corpus(texts.select_columns(["text"]), gathered.text_digest, tokenizer, tokens)
    full: Int64 = encoded.data.column("full_tokens").to_numpy().astype(np.int64)
    # Side by side without a copy: two are memory maps, the third is integers.
    columns = [texts.select_columns(["id", "text"]), datasets.Dataset(coded), encoded]
    joined = datasets.concatenate_datasets(columns, axis=1)
    return joined.select_columns(list(COLUMNS)), full


def _write_split(documents: datasets.Dataset, folder: Path, split: str) -> None:
    """Save a split as Arrow, its tokens and labels as flat arrays, its ids as lines."""
    place = folder / DOCUMENTS / split
    # Left to itself, `datasets` saves no documents as no shard, which it cannot load again.
    documents.save_to_disk(str(place), num_shards=None if len(documents) else 1)
    # Read back, since `documents` is a selection whose rows lie scattered over the corpus.
    saved = _saved(folder, split)
    write_column(saved.column("input_ids"), folder / ARRAYS / split, "tokens")
    write_column(saved.column("labels"), folder / ARRAYS / split, "labels")
    ids = folder / SPLIT_IDS / f"{split}.csv"
    ids.parent.mkdir(exist_ok=True)
    with ids.open("w", encoding="utf-8") as stream:
        # For others to use the same split.
        stream.writelines(f"{name.as_py()}\n" for name in saved.column("id"))


def _saved(folder: Path, split: str) -> Any:
    """Return the Arrow table of a split that has been written, memory-mapped."""
    return datasets.load_from_disk(str(folder / DOCUMENTS / split)).data


def _describe_planting(data: DataConfig, labels: Csr, struck: int) -> dict[str, Any] | None:
    """Describe the fourth document set; None where gains are counted on the training split."""
    if not labels.size:
        return None
    return {
        "corpus": data.planting_corpus,
        "documents": labels.size,
        "with_labels": int((labels.lengths() > 0).sum()),
        "struck_for_groups_held_out": struck,
    }


def _describe_split(
    gathered: Gathered, splits: Int8, data: DataConfig, seed: int
) -> dict[str, Any]:
    given = data.split == "given"
    # Documents that were left out cannot leak; those for planting have been checked.
    kept = (splits != UNSAID) & (splits != PLANTING)
    return {
        "how": data.split,
        "seed": seed,
        "validation_taken_from_train": given
        and bool((splits == VALIDATION).any() and not (gathered.splits == VALIDATION).any()),
        "training_documents_left_out": int((splits == UNSAID).sum()),
        "groups": {
            name: len(np.unique(gathered.groups[splits == code]))
            for code, name in enumerate(SPLITS)
        },
        "grouped": len(np.unique(gathered.groups)) < len(gathered.groups),
        "groups_across_splits": groups_across_splits(splits[kept], gathered.groups[kept]),
    }


def _announce_nameless(space: LabelSpace, declared: int) -> None:
    """Say which labels are known by nothing but their id, and which ids the label list lacks."""
    nameless, undeclared = np.flatnonzero(space.nameless), len(space) - declared
    if declared and undeclared:
        _log.warning(
            "%d labels of documents, such as %r, are not among the %d that the corpus lists, such "
            "as %r; are ids spelt alike?", undeclared, space.ids[declared], declared, space.ids[0],
        )  # fmt: skip
    if len(nameless):
        # Where none has a name the corpus may have none to give; else somebody misses some.
        level = logging.WARNING if declared or len(nameless) < len(space) else logging.INFO
        _log.log(
            level, "%d of %d labels have no name, such as %r (data.labels_path, "
            "data.label_text_column)", len(nameless), len(space), space.ids[int(nameless[0])],
        )  # fmt: skip


def _announce(statistics: Mapping[str, Any]) -> None:
    """Log what a person should know before training on this."""
    labels, documents = statistics["labels"], statistics["documents"]
    sizes = ", ".join(f"{documents[name]['documents']} {name}" for name in SPLITS)
    _log.info("documents: %s; labels: %s", sizes, labels["total"])
    for name, unseen in labels["unseen"].items():
        if unseen["labels"]:
            _log.info(
                "%s: %d labels have no training document (%.1f %% of its label occurrences); kept",
                name, unseen["labels"], 100 * unseen["share_of_occurrences"],
            )  # fmt: skip
    for name, pairs in statistics["ignored"].items():
        if pairs["pairs"]:
            _log.info(
                "%s: %d pairs of document and label are ignored (filter file), %d of them gold",
                name, pairs["pairs"], pairs["gold"],
            )  # fmt: skip
    for pair in statistics["duplicates"]["across"]:
        _log.warning(
            "%d texts are in %s and in %s, such as documents %s and %s; kept",
            pair["texts"], *pair["splits"], *pair["examples"][0],
        )  # fmt: skip
    split = statistics["split"]
    level = logging.WARNING if split["groups_across_splits"] else logging.INFO
    _log.log(level, "%s", describe_groups(split))
    if planting := statistics[PLANTING_SET]:
        _log.info(
            "planting counts %d documents (%d with a label); %d struck, whose group validates or "
            "tests", planting["documents"], planting["with_labels"],
            planting["struck_for_groups_held_out"],
        )  # fmt: skip
    for line in statistics["expected"]:
        if line["differs"]:
            _log.warning("%s", describe_count(line))
    if statistics["split"]["validation_taken_from_train"]:
        _log.warning("the corpus gives no validation split; it is taken from training")
