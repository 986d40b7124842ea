"""Areas under ROC curves, micro and per label, from retained predictions.

Equal to scikit-learn's where every score is retained. Where only each document's best are, the
rest count as tied below them, and half of every pair tied there is counted as won. Must not know
thresholds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plant_dist.metrics.retained import Predictions
from plant_dist.metrics.sweep import Sweep, label_sweeps, micro_sweep


def label_auc(
    predictions: Predictions, labels: int, ignored_L: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """(L,) AUC of each label over the documents; NaN where gold is everywhere or nowhere.

    Args: ignored_L: (L,) documents whose pair with a label does not count.
    """
    positives = np.bincount(predictions.gold.ids, minlength=labels)
    pairs = np.full(labels, predictions.gold.documents, dtype=np.int64)
    if ignored_L is not None:
        pairs -= ignored_L
    # The default of a label that no document retained: all its pairs are ties.
    won = _all_tied(positives, pairs)
    for sweep in label_sweeps(predictions):
        present = sweep.groups[sweep.starts]
        won[present] = _pairs_won(sweep, positives[present], pairs[present])
    return _area(won, positives, pairs)


def micro_auc(
    predictions: Predictions, labels: int, sweep: Sweep | None = None, ignored: int = 0
) -> float:
    """AUC of all document-label pairs as one ranking; NaN without positives or negatives.

    Args:
        sweep: the micro sweep, where it is at hand.
        ignored: pairs that do not count.
    """
    sweep = micro_sweep(predictions) if sweep is None else sweep
    positives = np.array([len(predictions.gold.ids)])
    pairs = np.array([predictions.gold.documents * labels - ignored])
    ranked = len(sweep.groups) > 0
    won = _pairs_won(sweep, positives, pairs) if ranked else _all_tied(positives, pairs)
    return float(_area(won, positives, pairs)[0])


def _all_tied(positives: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    return 0.5 * positives.astype(np.float64) * (pairs - positives)


def _pairs_won(
    sweep: Sweep, positives: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Count positive-negative pairs in the right order, ties as a half, for each group present.

    Args:
        positives, pairs: (g,) gold and all pairs of the group, retained or not.
    """
    starts = sweep.starts
    sizes = np.diff(np.append(starts, len(sweep.groups)))
    negatives = pairs - positives
    false_positives = sweep.predicted - sweep.true_positives
    gained = _within(sweep.true_positives, starts)
    tied = _within(false_positives, starts)
    # Negatives of a lower score, and half of those that are tied.
    beaten = np.repeat(negatives, sizes) - false_positives + 0.5 * tied
    won = np.add.reduceat(gained * beaten, starts)
    ends = starts + sizes - 1
    # What was not retained lies below the last step, in one large tie.
    positives_below = positives - sweep.true_positives[ends]
    negatives_below = negatives - false_positives[ends]
    return np.asarray(won + 0.5 * positives_below * negatives_below, dtype=np.float64)


def _within(cumulative: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Undo cumulative counts that start afresh at `starts`."""
    # Across the border of two groups the difference means nothing; it is set right below.
    steps = np.diff(cumulative, prepend=0)
    steps[starts] = cumulative[starts]
    return steps


def _area(
    won: NDArray[np.float64], positives: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.float64]:
    negatives = pairs - positives
    with np.errstate(invalid="ignore", divide="ignore"):
        area = won / (positives.astype(np.float64) * negatives)
    return np.where((positives > 0) & (negatives > 0), area, np.nan)
