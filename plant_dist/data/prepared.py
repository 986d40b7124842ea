"""The prepared dataset as later stages see it: documents, label space, tokenizer, flat arrays.

Reads what `prepare.py` wrote and nothing else. Folder layout:

    documents/{train,validation,test}/   Arrow, see `COLUMNS`; `planting` where the corpus has it
    arrays/{train,validation,test}/      tokens, labels and ignored labels of the same documents
                                         as memory maps
    split_ids/{train,validation,test}.csv  ids, one a line, for others to use the same split
    label_space/  tokenizer/  statistics.json
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
from transformers import PreTrainedTokenizerBase

from plant_dist.data.csr import Csr, open_csr
from plant_dist.data.records import DOCUMENT_SETS, PLANTING_SET
from plant_dist.data.tokens import load_tokenizer
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import ArtifactError, DataError

# Names inside the folder, shared with what writes it.
DOCUMENTS, ARRAYS = "documents", "arrays"
IGNORED = "ignored"
SPLIT_IDS = "split_ids"
LABEL_SPACE, TOKENIZER, STATISTICS = "label_space", "tokenizer", "statistics.json"
COLUMNS = (
    "id",
    "text",
    "labels",
    "input_ids",
    "evidence_label",
    "evidence_start",
    "evidence_end",
)


class PreparedDataset:
    """A folder written by `prepare_dataset`; everything is opened when it is asked for."""

    def __init__(self, folder: Path, statistics: dict[str, Any]) -> None:
        """Use `load`."""
        self.folder = folder
        self.statistics = statistics

    @classmethod
    def load(cls, folder: Path) -> PreparedDataset:
        """Open a prepared dataset.

        Raises:
            ArtifactError: the folder is not one.
        """
        try:
            # Written last by `prepare_dataset`: where it can be read, the rest is whole.
            statistics = json.loads((folder / STATISTICS).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{folder} is not a prepared dataset ({error}); run `plant-dist prepare`"
            ) from None
        return cls(folder, statistics)

    def documents(self, split: str) -> datasets.Dataset:
        """Return a split's documents, memory-mapped, with columns `COLUMNS`.

        `labels` and `evidence_label` are rising and unordered label indices (list<int32>),
        `input_ids` the whole document without special tokens, `evidence_start` and
        `evidence_end` characters of `text`.

        Raises:
            DataError: there is no such split.
            ArtifactError: its files are missing.
        """
        _check_split(split)
        try:
            # Memory-mapped by the library: ranks of one machine share the pages.
            return datasets.load_from_disk(str(self.folder / DOCUMENTS / split))
        except (OSError, ValueError) as error:
            raise ArtifactError(
                f"{self.folder}/{DOCUMENTS}/{split} cannot be read ({error}); "
                "run `plant-dist prepare` again"
            ) from None

    def token_csr(self, split: str) -> Csr:
        """Return (offsets, token ids) of a split's documents, memory-mapped."""
        _check_split(split)
        return open_csr(self.folder / ARRAYS / split, "tokens")

    def label_csr(self, split: str) -> Csr:
        """Return (offsets, label indices) of a split's documents, memory-mapped."""
        _check_split(split)
        return open_csr(self.folder / ARRAYS / split, "labels")

    def ignored_csr(self, split: str) -> Csr:
        """Return (offsets, label indices) of what does not count, rising, memory-mapped.

        Such a pair of document and label is left out of rankings, of gold labels and of the
        training loss, whether it is gold or not (filter files of extreme classification).
        """
        _check_split(split)
        return open_csr(self.folder / ARRAYS / split, IGNORED)

    @property
    def planting_set(self) -> str:
        """The document set that gains and ranker learn from: `planting` or `train`."""
        return PLANTING_SET if self.statistics.get(PLANTING_SET) else "train"

    @cached_property
    def label_space(self) -> LabelSpace:
        """The label space, with training frequencies."""
        return LabelSpace.load(self.folder / LABEL_SPACE)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Load the tokenizer that made the token ids."""
        return load_tokenizer(str(self.folder / TOKENIZER))


def _check_split(split: str) -> None:
    if split not in DOCUMENT_SETS:
        raise DataError(f"split {split!r} is none of {', '.join(DOCUMENT_SETS)}")
