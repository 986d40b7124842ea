"""What every baseline takes and gives: labelled texts in, a shortlist of labels a text out.

Holds the interface and the turning of sparse scores into padded shortlists. Must not know metrics.
Letters: B texts, K labels listed for each, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array


@dataclass(frozen=True)
class Shortlist:
    """The best labels of B texts.

    label_ids: (B, K) int32, best first; -1 where a text has fewer.
    scores: (B, K) float32; -inf where label_ids is -1.
    """

    label_ids: NDArray[np.int32]
    scores: NDArray[np.float32]


class Baseline(Protocol):
    """A reference system."""

    name: str

    def fit(self, texts: Sequence[str], labels: csr_array, label_texts: Sequence[str]) -> None:
        """Take the training split.

        Args:
            texts: N training texts.
            labels: (N, L), 1 where the text has the label; see `label_matrix`.
            label_texts: L names or descriptions; empty where there is none.
        """

    def shortlist(self, texts: Sequence[str]) -> Shortlist:
        """Rank labels for texts; a label that is not listed ranks below all that are."""

    def describe(self) -> str:
        """One line for the report: what was done, with the settings chosen."""


def label_matrix(offsets: Any, ids: Any, labels: int) -> csr_array:
    """Turn compressed rows of label ids into an (N, L) float32 matrix of ones."""
    indptr = np.asarray(offsets, np.int64)
    indices = np.asarray(ids, np.int64)
    # float32 as the votes are: a product with float64 would double both.
    ones = np.ones(len(indices), dtype=np.float32)
    return csr_array((ones, indices, indptr), shape=(len(indptr) - 1, labels))


def best_of_rows(scores: csr_array, keep: int) -> Shortlist:
    """List the `keep` best entries of each row, equal scores by rising label id."""
    rows = np.repeat(np.arange(scores.shape[0]), np.diff(scores.indptr))
    # One sort for all rows: by row, then falling score, then rising label id.
    order = np.lexsort((scores.indices, -scores.data, rows))
    # Rows are the first key, so that each keeps its stretch and places count within it.
    places = np.arange(len(rows)) - scores.indptr[rows]
    listed = places < keep
    width = max(1, int(places[listed].max()) + 1) if len(rows) else 1
    label_ids = np.full((scores.shape[0], width), -1, dtype=np.int32)
    values = np.full((scores.shape[0], width), -np.inf, dtype=np.float32)
    where = rows[listed], places[listed]
    label_ids[where] = scores.indices[order][listed]
    values[where] = scores.data[order][listed]
    return Shortlist(label_ids, values)
