"""The popularity baseline: every text gets the labels most frequent in training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from plant_dist.baselines.shortlist import Shortlist


class Popularity:
    """Ranks labels by their share of training documents.

    Args:
        keep: labels listed.
    """

    name = "popularity"

    def __init__(self, keep: int = 1000) -> None:
        self._keep = keep
        self._label_ids: NDArray[np.int32] = np.zeros(0, np.int32)
        self._scores: NDArray[np.float32] = np.zeros(0, np.float32)

    def fit(self, texts: Sequence[str], labels: csr_array, label_texts: Sequence[str]) -> None:
        """Count labels; the texts are not read."""
        frequency = np.bincount(labels.indices, minlength=labels.shape[1])
        # Stable, so that equal labels rank by rising id, as everywhere in the metrics.
        best = np.argsort(-frequency, kind="stable")[: self._keep]
        self._label_ids = best.astype(np.int32)
        self._scores = (frequency[best] / max(1, labels.shape[0])).astype(np.float32)

    def shortlist(self, texts: Sequence[str]) -> Shortlist:
        """Give every text the same list."""
        shape = (len(texts), len(self._label_ids))
        # Copies, because a broadcast view shares its rows and cannot be written to.
        return Shortlist(
            np.broadcast_to(self._label_ids, shape).copy(),
            np.broadcast_to(self._scores, shape).copy(),
        )

    def describe(self) -> str:
        """Name what ranks."""
        return "labels by their share of training documents"
