"""How far probabilities can be taken at their word: calibration error before and after calibration.

Sums over retained predictions, a few numbers for each bin of probability; nothing of documents
times labels. Must not fit anything; the maps are made in `calibration.py`. Letters: D documents,
N predictions of each, M bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from plant_dist.metrics.bands import BANDS, band_name, band_numbers
from plant_dist.metrics.calibration import Calibration
from plant_dist.metrics.retained import Predictions

BINS = 15  # as Guo et al. 2017


@dataclass(frozen=True)
class Reliability:
    """Predictions by bins of equal width of their probability; the last bin includes 1.

    counts, hits: (M,) predictions in each bin, and those that are gold.
    probability: (M,) the sum of their probabilities.
    loss: the sum of their log losses.
    """

    counts: NDArray[np.int64]
    hits: NDArray[np.int64]
    probability: NDArray[np.float64]
    loss: float

    @property
    def predictions(self) -> int:
        """All predictions counted."""
        return int(self.counts.sum())

    @property
    def ece(self) -> float:
        """Expected calibration error Σ_b n_b/n |share right in b - mean probability in b|."""
        return float(np.abs(self.hits - self.probability).sum()) / max(self.predictions, 1)

    @property
    def log_loss(self) -> float:
        """Mean of -ln of the probability given to what was the case, in nats."""
        return self.loss / max(self.predictions, 1)

    def as_json(self) -> dict[str, Any]:
        """Plain values, with each bin's mean probability and share right (None where empty)."""
        return {
            "predictions": self.predictions,
            "ece": self.ece,
            "log_loss": self.log_loss,
            "bins": {
                "counts": self.counts.tolist(),
                "mean_probability": self._means(self.probability),
                "share_right": self._means(self.hits),
            },
        }

    def _means(self, sums: NDArray[Any]) -> list[float | None]:
        pairs = zip(sums.tolist(), self.counts.tolist(), strict=True)
        return [total / count if count else None for total, count in pairs]


@dataclass(frozen=True)
class CalibrationReport:
    """Reliability before and after calibration, by what it is computed over.

    kind: "none", or the kind of calibration. fits: what was fitted for each band.
    before, after: by scope: `best k`, the k best predictions of each document in the model's
        order; `all N`, all that are retained; `labels RANGE`, those of a band of labels.
    """

    kind: str
    fits: Sequence[Mapping[str, Any]]
    before: dict[str, Reliability]
    after: dict[str, Reliability] | None

    def as_json(self) -> dict[str, Any]:
        """Plain containers."""
        after = self.after
        return {
            "kind": self.kind,
            "fitted_on": None if after is None else "validation",
            "computed_over": SCOPES,
            "bands": [dict(one) for one in self.fits],
            "before": {scope: one.as_json() for scope, one in self.before.items()},
            "after": after and {scope: one.as_json() for scope, one in after.items()},
        }


SCOPES = (
    f"document-label pairs in {BINS} bins of equal width of the probability; `best k`: the k best "
    "labels of each document in the model's order; `all N`: all N labels retained of each; "
    "`labels RANGE`: of these, labels with so many training documents"
)


def calibration_report(
    predictions: Predictions,
    train_frequency: NDArray[np.int64],
    depths: Sequence[int],
    calibration: Calibration | None,
) -> CalibrationReport:
    """Measure reliability of raw scores, and of calibrated ones where there is a calibration.

    Args:
        predictions: retained predictions of a split, with the model's own scores.
        train_frequency: (L,) training documents of each label.
        depths: the k of the scopes `best k`.
    """
    before = _reliability(predictions, train_frequency, depths)
    if calibration is None:
        return CalibrationReport("none", (), before, None)
    calibrated = calibration.apply(predictions)
    after = _reliability(calibrated, train_frequency, depths)
    return CalibrationReport(calibration.kind, calibration.describe(), before, after)


def _reliability(
    predictions: Predictions, train_frequency: NDArray[np.int64], depths: Sequence[int]
) -> dict[str, Reliability]:
    band_of_label, width = band_numbers(train_frequency), predictions.width
    # All that is retained counts once, however many cut-offs lie beyond it.
    heads = {f"best {k}": k for k in depths if k < width}
    names = [*heads, f"all {width}", *(f"labels {band_name(*band)}" for band in BANDS)]
    # count, hits, probability, loss of every bin of every scope
    sums = np.zeros((len(names), 4, BINS))
    for block in predictions.blocks():
        real_DN, terms = block.label_ids >= 0, _terms(block)
        for place, depth in enumerate((*heads.values(), width)):
            chosen = real_DN & (np.arange(width) < depth)
            sums[place] += _binned(*(one[chosen] for one in terms))
        band_DN = band_of_label[block.label_ids]
        for number in range(len(BANDS)):
            chosen = real_DN & (band_DN == number)
            sums[len(heads) + 1 + number] += _binned(*(one[chosen] for one in terms))
    found = {name: _of_sums(one) for name, one in zip(names, sums, strict=True)}
    # A band of no label has nothing to say.
    return {name: one for name, one in found.items() if one.predictions}


def _terms(block: Predictions) -> tuple[NDArray[Any], ...]:
    """(D, N) probability, hit and log loss of each prediction."""
    # A column that holds no prediction has score -inf, whose loss would be NaN.
    scores_DN = np.where(block.label_ids >= 0, block.scores, 0.0).astype(np.float64)
    hits_DN = block.hits()
    # -ln σ(z) = ln(1 + e^-z) for a hit and ln(1 + e^z) for a miss, exact also far out.
    loss_DN = np.logaddexp(0.0, np.where(hits_DN, -scores_DN, scores_DN))
    return expit(scores_DN), hits_DN, loss_DN


def _binned(
    probability: NDArray[np.float64], hits: NDArray[np.bool_], loss: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(4, M) sums of 1, hits, probability and loss."""
    bins = np.minimum((probability * BINS).astype(np.int64), BINS - 1)
    weights = (None, hits, probability, loss)
    return np.stack([np.bincount(bins, weights=one, minlength=BINS) for one in weights])


def _of_sums(sums: NDArray[np.float64]) -> Reliability:
    counts, hits = sums[:2].astype(np.int64)
    return Reliability(counts, hits, sums[2], float(sums[3].sum()))
