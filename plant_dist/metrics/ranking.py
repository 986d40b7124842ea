"""Ranking metrics as running sums: P, R, nDCG, PSP, PSR, PSnDCG at k, MAP and R-precision.

All of them follow from the ranks of a document's gold labels, so a batch costs time in its gold
labels, not in L, and the sums of two processes add up. Must not know scores or thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from plant_dist.errors import DataError
from plant_dist.metrics.gold import Gold

AT_K = ("p", "r", "ndcg", "psp", "psr", "psndcg")
_ROWS = (*AT_K, "psp_best", "psr_best", "psndcg_best")


def inverse_propensities(
    train_frequency: NDArray[np.int64], train_documents: int, a: float, b: float
) -> NDArray[np.float64]:
    """1 + (ln N - 1)(b + 1)^a (N_l + b)^-a: the inverse propensity of each label.

    Source: Jain, Prabhu, Varma, KDD 2016, equation 3. A propensity is at most 1, so the factor
    ln N - 1 counts as 0 for fewer than three training documents.

    Args:
        train_frequency: (L,) training documents of each label, N_l.
        train_documents: N.
        a, b: the corpus' constants, usually 0.55 and 1.5.
    """
    scale = max(0.0, np.log(max(1, train_documents)) - 1.0) * (b + 1.0) ** a
    return np.asarray(1.0 + scale * (train_frequency + b) ** -a, dtype=np.float64)


class RankingSums:
    """Sums over documents from which every ranking metric is a quotient.

    k may exceed the number of gold labels, of candidates or of labels: missing places count as
    wrong. PSP, PSR and PSnDCG are the ratio of two sums over documents (the value, and the best
    value that any ranking reaches), as in the Extreme Classification Repository and napkinXC;
    PSnDCG divides a document's gain by the ideal discount sum over min(k, gold labels) places.

    Args:
        ks: cut-offs.
        inverse_propensity: (L,) float64.
        empty_gold: "skip" leaves documents without gold labels out of the means, "zero" counts
            them as 0.
    """

    def __init__(
        self, ks: Sequence[int], inverse_propensity: NDArray[np.float64], empty_gold: str = "skip"
    ) -> None:
        # The order and repetition in a config must not decide whether two states add up.
        self.ks = np.array(sorted(set(ks)), dtype=np.int64)
        self._inverse_propensity = inverse_propensity
        self._empty_gold = empty_gold
        # float64: a million documents add up without losing the small terms.
        self._at_k = np.zeros((len(_ROWS), len(self.ks)))
        self._whole = np.zeros(4)  # average precision, R-precision, documents, documents with gold
        places = np.arange(1, int(self.ks.max()) + 1)
        self._ideal_discount = np.concatenate([[0.0], np.cumsum(1.0 / np.log2(places + 1.0))])

    def add(self, gold: Gold, ranks: NDArray[np.int32]) -> None:
        """Add documents; `ranks` (nnz,) is each gold label's rank from 1, or 0 for none."""
        self._whole[2:] += np.array([gold.documents, np.count_nonzero(gold.counts)])
        if not len(gold.ids):
            return
        self._add_at_k(gold, ranks)
        self._add_whole(gold, ranks)

    def _add_at_k(self, gold: Gold, ranks: NDArray[np.int32]) -> None:
        size = gold.counts[gold.rows]
        # At most k places count, and at most as many as there are gold labels.
        ideal = self._ideal_discount[np.minimum(size[:, None], self.ks)]
        inverse = self._inverse_propensity[gold.ids]
        # The best ranking puts a document's rarest labels first.
        rarest_first = np.lexsort((-inverse, gold.rows))
        best_places = np.arange(len(gold.ids)) - gold.offsets[gold.rows] + 1
        hits = (ranks > 0)[:, None] & (ranks[:, None] <= self.ks)
        best_hits = best_places[:, None] <= self.ks
        # `maximum` only keeps the logarithm defined where the rank is 0; `hits` is False there.
        discount = (hits.T / np.log2(np.maximum(ranks, 1) + 1.0)).T / ideal
        best_discount = (best_hits.T / np.log2(best_places + 1.0)).T / ideal
        best_inverse = inverse[rarest_first]
        self._at_k += (
            hits.sum(axis=0) / self.ks,
            (1.0 / size) @ hits,
            discount.sum(axis=0),
            inverse @ hits / self.ks,
            (inverse / size) @ hits,
            inverse @ discount,
            best_inverse @ best_hits / self.ks,
            (best_inverse / size) @ best_hits,
            best_inverse @ best_discount,
        )

    def _add_whole(self, gold: Gold, ranks: NDArray[np.int32]) -> None:
        size = gold.counts[gold.rows]
        # A label that is not ranked stands at infinity: it adds 1/∞ = 0 to the precision.
        found = np.where(ranks > 0, ranks.astype(np.float64), np.inf)
        ordered = found[np.lexsort((found, gold.rows))]
        # The i-th found gold label at rank r has precision i / r: i counts within the document.
        hits_so_far = np.arange(len(ordered)) - gold.offsets[gold.rows] + 1
        self._whole[:2] += (hits_so_far / ordered / size).sum(), ((found <= size) / size).sum()

    def merge(self, other: RankingSums) -> None:
        """Add the documents of another accumulator of the same cut-offs."""
        self.merge_state(other.state())

    def state(self) -> NDArray[np.float64]:
        """One vector; the sum of the vectors of all ranks is the state of the whole."""
        return np.concatenate([self._at_k.ravel(), self._whole])

    def merge_state(self, state: NDArray[np.float64]) -> None:
        """Add a `state()` of the same cut-offs.

        Raises:
            DataError: the state was made with other cut-offs.
        """
        if len(state) != self._at_k.size + self._whole.size:
            raise DataError(f"ranking state has {len(state)} numbers; was it made with other ks?")
        self._at_k += state[: self._at_k.size].reshape(self._at_k.shape)
        self._whole += state[self._at_k.size :]

    @property
    def documents(self) -> int:
        """Documents in the denominator of the means."""
        return int(self._whole[3] if self._empty_gold == "skip" else self._whole[2])

    def results(self) -> dict[str, float]:
        """`p@k`, `r@k`, `ndcg@k`, `psp@k`, `psr@k`, `psndcg@k` for each k, `map`, `r_precision`.

        Fractions in 0..1; NaN when no document counts.
        """
        named = dict(zip(_ROWS, self._at_k, strict=True))
        with np.errstate(invalid="ignore", divide="ignore"):
            for name in ("p", "r", "ndcg"):
                named[name] = named[name] / np.float64(self.documents)
            for name in ("psp", "psr", "psndcg"):
                named[name] = named[name] / named.pop(f"{name}_best")
            whole = self._whole[:2] / np.float64(self.documents)
        at_k = {
            f"{name}@{k}": float(value)
            for name in AT_K
            for k, value in zip(self.ks, named[name], strict=True)
        }
        return at_k | {"map": float(whole[0]), "r_precision": float(whole[1])}
