"""Every decision threshold at once: true positives and predictions at each distinct score.

One sort of packed integers gives the sweep of all predictions together (micro) or of each label
alone; F1-optimal thresholds, AUC and the curves all read it. Must not know what they do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plant_dist.metrics.retained import Predictions

_GROUP_SHIFT = np.uint64(33)  # a key is: 31 bits group, 32 bits score (falling), 1 bit hit
_SIGN = np.uint32(1 << 31)
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Sweep:
    """Steps of equal score, by rising group and falling score.

    groups: (m,) int64, the label; 0 everywhere in a micro sweep.
    scores: (m,) float32, the score of the step.
    true_positives, predicted: (m,) int64, gold and all predictions of the group with at least
        this score.
    """

    groups: NDArray[np.int64]
    scores: NDArray[np.float32]
    true_positives: NDArray[np.int64]
    predicted: NDArray[np.int64]

    @property
    def starts(self) -> NDArray[np.int64]:
        """(g,) first step of each group that is present."""
        return _starts(self.groups)

    def step_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(m,) predictions of exactly each step's score, and (m,) how many of them are gold."""
        starts, counts = self.starts, []
        for running in (self.predicted, self.true_positives):
            alone = np.diff(running, prepend=0)
            # The first step of a group follows another group's last.
            alone[starts] = running[starts]
            counts.append(alone)
        return counts[0], counts[1]

    def thresholds(self) -> NDArray[np.float32]:
        """(m,) a threshold that accepts each step and nothing below: midway to the next score.

        The last step of a group keeps its own score, since nothing is known below it.
        """
        following = np.append(self.scores[1:], self.scores[-1:])
        last = np.append(self.groups[1:] != self.groups[:-1], True)[: len(self.groups)]
        # The next score belongs to another label.
        following[last] = self.scores[last]
        middle = following + (self.scores - following) * np.float32(0.5)
        # Between neighbouring floats the midpoint may round down to the score it must exclude.
        return np.where(middle > following, middle, self.scores).astype(np.float32)


def micro_sweep(predictions: Predictions) -> Sweep:
    """Sweep one threshold over the predictions of all labels."""
    return _sweep(_sorted_keys(predictions))


def group_sweep(predictions: Predictions, group_of_label: NDArray[np.integer[Any]]) -> Sweep:
    """Sweep groups of labels, each together; `group_of_label` is (L,)."""
    return _sweep(_sorted_keys(predictions, lambda label_ids: group_of_label[label_ids]))


def label_sweeps(predictions: Predictions) -> Iterator[Sweep]:
    """Sweep each label's own threshold; yields many labels at a time, each label once."""
    keys = _sorted_keys(predictions, lambda label_ids: label_ids)
    start = 0
    while start < len(keys):
        # Extended to the end of its last label: a label cut in two would have two thresholds.
        last = keys[min(start + _BLOCK, len(keys)) - 1] >> _GROUP_SHIFT
        stop = int(np.searchsorted(keys, (last + np.uint64(1)) << _GROUP_SHIFT))
        yield _sweep(keys[start:stop])
        start = stop


def _sorted_keys(
    predictions: Predictions,
    group_of: Callable[[NDArray[np.int32]], NDArray[np.integer[Any]]] | None = None,
) -> NDArray[np.uint64]:
    keys = np.empty(np.count_nonzero(predictions.label_ids >= 0), dtype=np.uint64)
    start = 0
    for block in predictions.blocks():
        valid = block.label_ids >= 0
        stop = start + int(np.count_nonzero(valid))
        part = _falling_bits(block.scores[valid]).astype(np.uint64) << np.uint64(1)
        part |= block.hits()[valid]
        if group_of is not None:
            part |= group_of(block.label_ids[valid]).astype(np.uint64) << _GROUP_SHIFT
        keys[start:stop] = part
        start = stop
    # In place and without an index: 8 bytes a prediction is all the memory it takes.
    keys.sort()
    return keys


def _falling_bits(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Map float32 to integers that rise as the score falls."""
    # Adding zero makes -0.0 the bits of 0.0: scores that are equal must be one step.
    bits = (scores + np.float32(0.0)).view(np.uint32)
    # A negative float's bits rise as it falls already; a positive one's are turned round.
    falling: NDArray[np.uint32] = np.where(bits & _SIGN, bits, ~(bits | _SIGN))
    return falling


def _score_of(falling: NDArray[np.uint32]) -> NDArray[np.float32]:
    bits: NDArray[np.uint32] = np.where(falling & _SIGN, falling, ~falling & ~_SIGN)
    return bits.view(np.float32)


def _sweep(keys: NDArray[np.uint64]) -> Sweep:
    """Count along sorted keys; a step ends where group or score changes."""
    steps = keys >> np.uint64(1)
    ends = np.flatnonzero(np.append(steps[1:] != steps[:-1], True)[: len(steps)])
    groups = (keys[ends] >> _GROUP_SHIFT).astype(np.int64)
    scores = _score_of((steps[ends] & np.uint64(0xFFFFFFFF)).astype(np.uint32))
    # The lowest bit is the hit, so that one sort carries scores, labels and truth together.
    hits = np.cumsum((keys & np.uint64(1)).astype(np.int64))[ends]
    return Sweep(groups, scores, _restarted(hits, groups), _restarted(ends + 1, groups))


def _starts(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.flatnonzero(np.append(True, groups[1:] != groups[:-1])[: len(groups)])


def _restarted(counts: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Make running counts start from zero in every group."""
    starts = _starts(groups)
    # At the very first start there is nothing before, and -1 would read the end.
    before = np.where(starts > 0, counts[starts - 1], 0)
    sizes = np.diff(np.append(starts, len(groups)))
    return np.asarray(counts - np.repeat(before, sizes), dtype=np.int64)
