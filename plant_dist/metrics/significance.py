"""Is one system better than another, or lucky in its documents? A paired bootstrap over documents.

Documents are drawn with replacement; both systems are measured on the same draws, and the spread
of their difference is what chance alone would give. A metric is a `DocumentSums`: parts that add
up over documents, and what is made of their sums. Must not know how predictions came about.

D documents, L labels, R resamples, N predictions kept of each document.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from plant_dist.errors import DataError
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.retained import Predictions
from plant_dist.metrics.thresholds import Thresholds

_MIDDLE = (2.5, 97.5)  # percentiles around 95 %
_BLOCK = 128  # resamples measured at once; bounds memory at a few numbers per label each


class DocumentSums(Protocol):
    """A metric of a set of documents, each counted any number of times."""

    @property
    def documents(self) -> int:
        """D."""

    def of(self, weights_RD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the metric (R,) of R sets, document d counted weights[r, d] times."""


@dataclass(frozen=True)
class RatioOfSums:
    """Σ_d numerator / Σ_d denominator, such as recall, or a mean where the denominators are 1.

    numerators, denominators: (D,) float64.
    """

    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]

    @property
    def documents(self) -> int:
        """D."""
        return len(self.numerators)

    def of(self, weights_RD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the ratio (R,); 0 where there is nothing to divide by."""
        return _ratio(weights_RD @ self.numerators, weights_RD @ self.denominators)


@dataclass(frozen=True)
class MacroF1:
    """Mean of 2 TP / (decided + gold) over the labels that the set of documents holds.

    A resample leaves out a third of the labels that one document speaks of. They are not averaged
    over there, as labels that a split does not hold are not: counting them as 0 would shrink every
    resample, and put the interval beside the value that it is of.

    right, decided, gold: (D, L) of ones, for the labels averaged over.
    """

    right: csr_array
    decided: csr_array
    gold: csr_array

    @property
    def documents(self) -> int:
        """D."""
        return int(self.gold.shape[0])

    def of(self, weights_RD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return macro-F1 (R,); 0 for a set that holds none of the labels."""
        # Sparse from the left: (L, D) · (D, R), never documents × labels dense.
        right_RL, decided_RL, gold_RL = (
            (part.T @ weights_RD.T).T for part in (self.right, self.decided, self.gold)
        )
        held_RL = gold_RL > 0
        f1_RL = _ratio(2 * right_RL, decided_RL + gold_RL)
        return _ratio((f1_RL * held_RL).sum(axis=1), held_RL.sum(axis=1).astype(np.float64))


@dataclass(frozen=True)
class Comparison:
    """How far system A is ahead of system B.

    Attributes:
        difference: A - B on the documents as they are.
        low, high: the middle 95 % of the differences of resamples.
        worse: share of resamples in which A is not ahead; a one-sided p-value of about that much.
        resamples: R.
    """

    difference: float
    low: float
    high: float
    worse: float
    resamples: int


@dataclass(frozen=True)
class Interval:
    """A measure on the documents as they are, and the middle 95 % of its resamples."""

    value: float
    low: float
    high: float


def bootstrap_interval(a: DocumentSums, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return a metric with its percentile interval over documents drawn with replacement.

    Raises:
        DataError: there is no document.
    """
    if not a.documents:
        raise DataError("a bootstrap needs documents, and there is none")
    found = np.concatenate([a.of(weights) for weights in _draws(a.documents, resamples, seed)])
    low, high = np.percentile(found, _MIDDLE)
    return Interval(float(a.of(np.ones((1, a.documents)))[0]), float(low), float(high))


def paired_bootstrap(
    a: DocumentSums, b: DocumentSums, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare two systems on the same documents in the same order.

    Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), percentile intervals.

    Raises:
        DataError: the systems were measured on different numbers of documents, or on none.
    """
    if a.documents != b.documents or not a.documents:
        raise DataError(
            f"a paired comparison needs the same documents; A has {a.documents}, B {b.documents}"
        )
    ones_1D = np.ones((1, a.documents))
    found = np.concatenate(
        [a.of(weights) - b.of(weights) for weights in _draws(a.documents, resamples, seed)]
    )
    low, high = np.percentile(found, _MIDDLE)
    return Comparison(
        difference=float((a.of(ones_1D) - b.of(ones_1D))[0]),
        low=float(low), high=float(high), worse=float((found <= 0).mean()), resamples=resamples,
    )  # fmt: skip


def _draws(documents: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield how often each document is drawn, (≤ block, D), `resamples` rows in all."""
    random = np.random.default_rng(seed)
    share = np.full(documents, 1 / documents)
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        # Counts of D draws with replacement, without the draws themselves.
        yield random.multinomial(documents, share, size=rows).astype(np.float64)


def recall_sums(predictions: Predictions, k: int, labels: NDArray[np.bool_]) -> RatioOfSums:
    """Recall@k of some labels: the share of their gold that is among each document's first k.

    Args: labels: (L,) True for the labels that count.
    """
    gold = predictions.gold
    entries = labels[gold.ids]
    found = entries & (predictions.gold_ranks > 0) & (predictions.gold_ranks <= k)
    return RatioOfSums(*(_per_document(gold, part) for part in (found, entries)))


def precision_sums(predictions: Predictions, k: int) -> RatioOfSums:
    """Precision@k, the mean over documents with gold labels."""
    gold = predictions.gold
    found = (predictions.gold_ranks > 0) & (predictions.gold_ranks <= k)
    counted = (gold.counts > 0).astype(np.float64)
    return RatioOfSums(_per_document(gold, found) / k, counted)


def macro_f1_sums(
    predictions: Predictions, thresholds: Thresholds, labels: NDArray[np.bool_]
) -> MacroF1:
    """Macro-F1 of the labels of a set that the split holds, decided by a rule.

    Args: labels: (L,) True for the labels that count; those without gold are left out.
    """
    gold = predictions.gold
    counted = labels & (np.bincount(gold.ids, minlength=len(labels)) > 0)
    ids_DN = predictions.label_ids
    chosen_DN = thresholds.decide(ids_DN, predictions.scores) & counted[ids_DN]
    right_DN = chosen_DN & predictions.hits()
    column = np.cumsum(counted) - 1
    width = int(counted.sum())
    right, decided = (
        _ones(np.nonzero(cells)[0], column[ids_DN[cells]], gold.documents, width)
        for cells in (right_DN, chosen_DN)
    )
    entries = counted[gold.ids]
    rows, columns = gold.rows[entries], column[gold.ids[entries]]
    return MacroF1(right, decided, _ones(rows, columns, gold.documents, width))


def _ones(
    rows: NDArray[np.integer], columns: NDArray[np.integer], documents: int, labels: int
) -> csr_array:
    return csr_array((np.ones(len(rows)), (rows, columns)), shape=(documents, labels))


def _per_document(gold: Gold, entries: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.bincount(gold.rows[entries], minlength=gold.documents).astype(np.float64)


def _ratio(
    numerators: NDArray[np.float64], denominators: NDArray[np.float64]
) -> NDArray[np.float64]:
    safe: NDArray[np.float64] = np.where(denominators > 0, denominators, 1.0)
    return numerators / safe
