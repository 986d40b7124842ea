"""The gain table: for every label, its best tokens and how much they tell, falling.

Holds the arrays, their files and their inverse by token; must not know how gains are computed, how
a ranker learns from them or how attention uses them. V vocabulary, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plant_dist.errors import ArtifactError


class TokenIndex(NamedTuple):
    """The table turned round: for every token, the labels it speaks for, ascending.

    offsets (V+1,) int64 · labels (nnz,) int32 · gains (nnz,) float32.
    """

    offsets: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int32]
    gains: npt.NDArray[np.float32]


@dataclass(frozen=True)
class GainTable:
    """The tokens kept for each label, best first, with the counts they came from.

    Attributes:
        offsets: (L+1,) int64; label l owns the entries offsets[l] to offsets[l+1].
        tokens: (nnz,) int32 token ids; best score first inside a label, ties by token id.
        gains: (nnz,) float32, normalised gain J in [0, 1]. Falling inside a label, unless the
            table was ranked by information (`mig.score`).
        information: (nnz,) float32, I in nats.
        token_documents: (V,) int64, training documents that hold each token.
        label_documents: (L,) int64, training documents that carry each label.
        documents: () int64, training documents N.
    """

    offsets: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int32]
    gains: npt.NDArray[np.float32]
    information: npt.NDArray[np.float32]
    token_documents: npt.NDArray[np.int64]
    label_documents: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label_documents)

    @property
    def vocabulary_size(self) -> int:
        """V, the token ids that the table knows of."""
        return len(self.token_documents)

    def label(self, label: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Tokens and gains J of one label, best first."""
        start, stop = self.offsets[label], self.offsets[label + 1]
        return self.tokens[start:stop], self.gains[start:stop]

    def labels_of_entries(self) -> npt.NDArray[np.int32]:
        """(nnz,) int32: the label that owns each entry."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def token_index(self) -> TokenIndex:
        """Entries by token instead of by label, as sparse attention reads a document."""
        # Stable, so that a token's labels stay ascending, as the entries are.
        order = np.argsort(self.tokens, kind="stable")
        counts = np.bincount(self.tokens, minlength=self.vocabulary_size)
        return TokenIndex(offsets_of(counts), self.labels_of_entries()[order], self.gains[order])

    def save(self, folder: Path) -> None:
        """Write one .npy file an attribute into an existing folder."""
        for entry in fields(self):
            # Plain arrays only: a pickle inside could run code when the file is opened.
            np.save(folder / f"{entry.name}.npy", getattr(self, entry.name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> GainTable:
        """Open a saved table; arrays stay on disk until they are read (memory-mapped).

        Raises:
            ArtifactError: a file is missing or unreadable, or the arrays do not fit together.
        """
        table = cls(**{entry.name: _open(folder / f"{entry.name}.npy") for entry in fields(cls)})
        # Files of their own may come from unlike copies of a folder, and not make one table.
        lengths = {len(table.tokens), len(table.gains), len(table.information)}
        if len(table.offsets) != len(table) + 1 or lengths != {int(table.offsets[-1])}:
            raise ArtifactError(
                f"{folder}: {len(table.offsets)} offsets for {len(table)} labels and entries of "
                f"lengths {sorted(lengths)} do not fit together; run the stage mig again"
            )
        return table


def _open(path: Path) -> npt.NDArray[Any]:
    try:
        return np.asanyarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"{path}: {error}; run the stage mig again") from error


def offsets_of(counts: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """CSR offsets of rows with these lengths: (n+1,) int64, from 0."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
