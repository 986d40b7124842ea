"""Precision, recall and F1 from per-label counts of decisions, micro and macro.

Both macro definitions in use are given. Must not know how the decisions were made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LabelTally:
    """Decisions per label; tallies of disjoint documents add up.

    true_positives, false_positives, false_negatives: (L,) int64.
    """

    true_positives: NDArray[np.int64]
    false_positives: NDArray[np.int64]
    false_negatives: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        labels: int,
        hits: NDArray[np.integer],
        misses: NDArray[np.integer],
        gold: NDArray[np.integer],
    ) -> LabelTally:
        """Count label ids: of right decisions, of wrong decisions, and of all gold labels."""
        # Of all decisions only three numbers a label stay, whatever the number of documents.
        true = np.bincount(hits, minlength=labels)
        false = np.bincount(misses, minlength=labels)
        return cls(true, false, np.bincount(gold, minlength=labels) - true)

    def __add__(self, other: LabelTally) -> LabelTally:
        return LabelTally(
            self.true_positives + other.true_positives,
            self.false_positives + other.false_positives,
            self.false_negatives + other.false_negatives,
        )

    @property
    def present(self) -> NDArray[np.bool_]:
        """(L,) labels with gold in the documents tallied."""
        return self.true_positives + self.false_negatives > 0

    def among(self, labels: NDArray[np.bool_]) -> LabelTally:
        """Keep the labels (L,) that are True."""
        return LabelTally(
            self.true_positives[labels],
            self.false_positives[labels],
            self.false_negatives[labels],
        )


def micro_scores(tally: LabelTally) -> dict[str, float]:
    """`micro_precision`, `micro_recall`, `micro_f1` of all decisions; 0 where 0 / 0."""
    # Sums of int64 are exact, so the order of batches and ranks cannot show.
    true = tally.true_positives.sum()
    false, missed = tally.false_positives.sum(), tally.false_negatives.sum()
    return {
        "micro_precision": float(_ratio(true, true + false)),
        "micro_recall": float(_ratio(true, true + missed)),
        "micro_f1": float(_ratio(2 * true, 2 * true + false + missed)),
    }


def macro_scores(tally: LabelTally) -> dict[str, float]:
    """Means over the labels of the tally; 0 where a label's quotient is 0 / 0.

    `macro_f1` is the mean of per-label F1 (scikit-learn); `macro_f1_caml` the harmonic mean of
    `macro_precision` and `macro_recall` (Mullenbach et al., NAACL 2018). NaN without labels.
    """
    true = tally.true_positives
    false, missed = tally.false_positives, tally.false_negatives
    precision, recall, f1 = (
        float(ratio.mean()) if len(ratio) else float("nan")
        for ratio in (
            _ratio(true, true + false),
            _ratio(true, true + missed),
            # From counts, not from precision and recall: 0/0 is then a single case.
            _ratio(2 * true, 2 * true + false + missed),
        )
    )
    return {
        "macro_precision": precision,
        "macro_recall": recall,
        "macro_f1": f1,
        "macro_f1_caml": float(_ratio(2 * precision * recall, precision + recall)),
    }


def decision_scores(tally: LabelTally) -> dict[str, float]:
    """Micro and macro scores over all labels, and macro over those present (`..._present`)."""
    # Macro F1 over labels that never occur is 0 for each: both conventions are in use.
    over_present = macro_scores(tally.among(tally.present))
    return (
        micro_scores(tally)
        | macro_scores(tally)
        | {f"{name}_present": value for name, value in over_present.items()}
    )


def _ratio(
    numerator: NDArray[np.int64] | float, denominator: NDArray[np.int64] | float
) -> NDArray[np.float64]:
    """Divide, with 0 / 0 = 0."""
    # `where` leaves the zeros of `out` untouched and raises no warning, unlike a repair after.
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom != 0)
