"""The gold labels of a run of documents, as compressed rows.

Holds the checks that gold labels must pass and the few row operations that every metric needs. It
must not know scores, ranks or metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plant_dist.errors import DataError


@dataclass(frozen=True)
class Gold:
    """Gold labels of B documents.

    offsets: (B+1,) int64; document b's labels are `ids[offsets[b]:offsets[b+1]]`.
    ids: (nnz,) int32, each label at most once in a document.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]

    @classmethod
    def checked(cls, offsets: Any, ids: Any, labels: int) -> Gold:
        """Take offsets and ids (numpy or CPU torch, any integer type) for a space of `labels`.

        Raises:
            DataError: offsets do not fit ids, an id is outside 0..labels-1, or a document repeats
                a label; names the row and the value.
        """
        gold = cls(np.asarray(offsets, np.int64), np.asarray(ids, np.int64).astype(np.int32))
        # Checked first: a row is only known once the offsets are sound.
        ends = gold.offsets[[0, -1]].tolist() if len(gold.offsets) else []
        if ends != [0, len(gold.ids)] or (gold.counts < 0).any():
            raise DataError(f"gold offsets run over {ends} for {len(gold.ids)} ids; want CSR rows")
        outside = np.flatnonzero((gold.ids < 0) | (gold.ids >= labels))
        if len(outside):
            row, label = gold.rows[outside[0]], gold.ids[outside[0]]
            raise DataError(f"gold row {row} holds label {label}; ids must be 0..{labels - 1}")
        # A number for each (document, label): equal neighbours are a repetition.
        keys = np.sort(gold.rows * labels + gold.ids)
        repeated = keys[1:][keys[1:] == keys[:-1]]
        if len(repeated):
            row, label = divmod(int(repeated[0]), labels)
            raise DataError(f"gold row {row} holds label {label} twice; remove the repetition")
        return gold

    @classmethod
    def of_counts(cls, counts: NDArray[np.int64], ids: NDArray[np.int32]) -> Gold:
        """Build rows from their lengths."""
        return cls(np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]), ids)

    @classmethod
    def joined(cls, parts: Sequence[Gold]) -> Gold:
        """Put the documents of several parts one after another."""
        counts = [part.counts for part in parts]
        return cls.of_counts(np.concatenate(counts), np.concatenate([part.ids for part in parts]))

    @property
    def documents(self) -> int:
        """Number of documents, those without labels included."""
        return len(self.offsets) - 1

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """(B,) labels of each document."""
        return np.diff(self.offsets)

    @cached_property
    def rows(self) -> NDArray[np.int64]:
        """(nnz,) document of each label."""
        # int64, so that row · L in a key cannot overflow.
        return np.repeat(np.arange(self.documents), self.counts)

    def among(self, entries: NDArray[np.bool_]) -> Gold:
        """Keep the entries (nnz,) that are True; every document stays, perhaps without labels."""
        # `minlength` keeps the documents at the end that lose all their labels.
        counts = np.bincount(self.rows[entries], minlength=self.documents)
        return Gold.of_counts(counts, self.ids[entries])

    def documents_where(self, keep: NDArray[np.bool_]) -> Gold:
        """Keep the documents (B,) that are True."""
        return Gold.of_counts(self.counts[keep], self.ids[keep[self.rows]])
