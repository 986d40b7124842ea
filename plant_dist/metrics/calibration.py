"""Calibration: the map from a model's scores to scores whose sigmoid is a probability.

One map for each band of label frequency, either a temperature or an isotonic curve, fitted on
validation documents. A map never falls, so that it changes no order inside a band; the order of a
document's labels stays the model's. Must not be fitted on the documents it is reported on, which
is the caller's promise. Letters: D documents, N predictions of each, L labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit

from plant_dist.errors import ArtifactError
from plant_dist.metrics.bands import BANDS, band_name, band_numbers
from plant_dist.metrics.retained import Predictions
from plant_dist.metrics.sweep import group_sweep

KINDS = ("temperature", "isotonic")
# Where a few validation documents happen to be told apart without error, the best temperature is
# 0, and the first error elsewhere would be given a probability of nil.
_HOTTEST = 10.0
# An isotonic curve ends in 0 and 1, whose logits are infinite.
_SMALLEST = 1e-6

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Temperature:
    """z / T (Guo et al. 2017)."""

    temperature: float

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrate logits."""
        return np.asarray(scores / self.temperature, dtype=np.float32)

    @classmethod
    def fit(cls, scores: Floats, counts: Floats, hits: Floats) -> Temperature:
        """Minimise the log loss of σ(z / T), for T from 1/10 to 10.

        Args:
            scores: (m,) distinct scores z.
            counts, hits: (m,) predictions of that score, and how many are right.
        """
        right = float(hits @ scores)

        # The loss is convex in 1/T, and this is its slope there, which never falls.
        def slope(sharpness: float) -> float:
            return float(counts @ (scores * expit(sharpness * scores))) - right

        low, high = 1 / _HOTTEST, _HOTTEST
        if slope(low) >= 0:
            return cls(1 / low)
        # Where all right predictions lie above 0 and all wrong ones below, none is too sharp.
        return cls(1 / high) if slope(high) <= 0 else cls(1 / float(brentq(slope, low, high)))


@dataclass(frozen=True)
class Isotonic:
    """A curve that never falls, straight between its knots and level outside.

    scores, probabilities: (m,) the knots, rising.
    """

    scores: Floats
    probabilities: Floats

    def __call__(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrate logits; gives logits again."""
        found = np.interp(scores, self.scores, self.probabilities)
        return np.asarray(logit(found), dtype=np.float32)

    @classmethod
    def fit(cls, scores: Floats, counts: Floats, hits: Floats) -> Isotonic:
        """Minimise the squared error (scikit-learn); the arguments are those of `Temperature`."""
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(y_min=_SMALLEST, y_max=1 - _SMALLEST, out_of_bounds="clip")
        # Distinct scores weighted by their number give what single predictions would.
        curve.fit(scores, hits / counts, sample_weight=counts)
        knots = (curve.X_thresholds_, curve.y_thresholds_)
        return cls(*(np.asarray(one, dtype=np.float64) for one in knots))


Curve = Temperature | Isotonic
_FITS: dict[str, Callable[[Floats, Floats, Floats], Curve]] = {
    "temperature": Temperature.fit, "isotonic": Isotonic.fit,
}  # fmt: skip


@dataclass(frozen=True)
class BandFit:
    """The map of one band.

    name: as `bands.band_name`. pairs, positives: predictions it could be fitted to, and gold ones.
    own: False where those were too few, so that the map of all bands together serves.
    """

    name: str
    pairs: int
    positives: int
    own: bool
    curve: Curve


@dataclass(frozen=True)
class Calibration:
    """The maps of all bands, for one label space.

    kind: one of `KINDS`. bands: in the order of `bands.BANDS`.
    band_of_label: (L,) place of each label's band in `bands`.
    """

    kind: str
    bands: tuple[BandFit, ...]
    band_of_label: NDArray[np.int8]

    def scores(self, label_ids: NDArray[Any], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """Calibrate scores (...) of labels (...); -inf and the scores of label -1 stay."""
        calibrated = scores.astype(np.float32)
        # Level ends would lift what is removed from a ranking back into it.
        real = (label_ids >= 0) & ~np.isneginf(scores)
        band = self.band_of_label[label_ids]
        for number, fit in enumerate(self.bands):
            inside = real & (band == number)
            calibrated[inside] = fit.curve(calibrated[inside])
        return calibrated

    def apply(self, predictions: Predictions) -> Predictions:
        """Calibrate retained predictions; their order stays."""
        parts = [self.scores(part.label_ids, part.scores) for part in predictions.blocks()]
        # No document makes no block.
        return replace(predictions, scores=np.concatenate([predictions.scores[:0], *parts]))

    def floors(self, wanted_L: NDArray[np.float32]) -> NDArray[np.float32]:
        """(L,) each label's lowest score that is calibrated to `wanted_L` or more; inf for none.

        Exact, so that comparing scores with floors decides as comparing calibrated ones would.
        """
        # Labels of one band and one wanted score share a floor: few are searched, not L.
        pairs = np.stack([self.band_of_label.astype(np.float64), wanted_L.astype(np.float64)])
        _, first, place = np.unique(pairs, axis=1, return_index=True, return_inverse=True)
        wanted = wanted_L[first]
        low, high = (np.full(len(first), _order(np.float32(end))) for end in (-np.inf, np.inf))
        # Bisection over the float32 numbers themselves: 2^32 of them at most.
        for _ in range(33):
            middle = (low + high) // 2
            reached = self.scores(first, _float(middle)) >= wanted
            low, high = np.where(reached, low, middle), np.where(reached, middle, high)
        return _float(high)[place.ravel()]

    def describe(self) -> list[dict[str, Any]]:
        """What was fitted for each band, as plain values without the isotonic knots."""
        return [
            {"band": one.name, "pairs": one.pairs, "positives": one.positives, "own": one.own}
            | ({"temperature": one.curve.temperature} if isinstance(one.curve, Temperature) else {})
            for one in self.bands
        ]

    def save(self, path: Path) -> None:
        """Write JSON; the maps read back to the same numbers."""
        bands = [
            described | _plain(one.curve)
            for described, one in zip(self.describe(), self.bands, strict=True)
        ]
        content = {"kind": self.kind, "fitted_on": "validation", "bands": bands}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, train_frequency: NDArray[np.int64]) -> Calibration:
        """Read what `save` wrote, for labels of these training frequencies (L,).

        Raises:
            ArtifactError: the file is missing, is no such JSON, or has other bands.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            bands = tuple(_band_fit(content["kind"], one) for one in content["bands"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: no readable calibration ({type(error).__name__}: {error}); "
                "run the train stage again"
            ) from error
        if [one.name for one in bands] != [band_name(*one) for one in BANDS]:
            raise ArtifactError(
                f"{path}: the bands are {', '.join(one.name for one in bands)}, which are not "
                "those of this version; run the train stage again"
            )
        return cls(str(content["kind"]), bands, band_numbers(train_frequency))


def fit_calibration(
    predictions: Predictions, train_frequency: NDArray[np.int64], kind: str, min_positives: int
) -> Calibration | None:
    """Fit a map for each band to the retained predictions of validation documents.

    Args:
        predictions: of the validation documents; what is not retained is not seen.
        train_frequency: (L,) training documents of each label.
        kind: one of `KINDS`.
        min_positives: gold predictions below which a band takes the map of all bands together.

    Returns: None where no retained prediction is gold, which teaches nothing.
    """
    band_of_label, fit = band_numbers(train_frequency), _FITS[kind]
    # Equal scores of a band are one step of its sweep: a few numbers instead of D times N.
    sweep = group_sweep(predictions, band_of_label)
    counts, hits = sweep.step_counts()
    if not hits.any():
        return None
    scores, outcomes = sweep.scores.astype(np.float64), (counts, hits)
    overall = fit(scores, *(one.astype(np.float64) for one in outcomes))
    fits = []
    for number, limits in enumerate(BANDS):
        steps = sweep.groups == number
        banded = [one[steps].astype(np.float64) for one in (scores, *outcomes)]
        positives = int(banded[2].sum())
        own = positives >= min_positives
        curve = fit(*banded) if own else overall
        fits.append(BandFit(band_name(*limits), int(banded[1].sum()), positives, own, curve))
    return Calibration(kind, tuple(fits), band_of_label)


def _order(number: NDArray[np.float32] | np.float32) -> NDArray[np.int64]:
    """Integers that rise as float32 numbers do."""
    bits = np.asarray(number).view(np.int32).astype(np.int64)
    # A negative number's bits rise as it falls.
    return np.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _float(order: NDArray[np.int64]) -> NDArray[np.float32]:
    """The inverse of `_order`."""
    positive = np.abs(order).astype(np.uint32)
    bits = np.where(order < 0, positive | np.uint32(1 << 31), positive)
    return bits.astype(np.uint32).view(np.float32)


def _plain(curve: Curve) -> dict[str, Any]:
    if isinstance(curve, Temperature):
        return {"temperature": curve.temperature}
    knots = {"scores": curve.scores, "probabilities": curve.probabilities}
    return {name: values.tolist() for name, values in knots.items()}


def _band_fit(kind: str, fields: dict[str, Any]) -> BandFit:
    name, pairs, positives = str(fields["band"]), int(fields["pairs"]), int(fields["positives"])
    return BandFit(name, pairs, positives, bool(fields["own"]), _curve(kind, fields))


def _curve(kind: str, fields: dict[str, Any]) -> Curve:
    """Build a map, or raise ValueError for one that would fall or has no value."""
    if kind == "temperature":
        temperature = float(fields["temperature"])
        if not 0 < temperature < np.inf:
            raise ValueError(f"temperature {temperature}")
        return Temperature(temperature)
    if kind != "isotonic":
        raise ValueError(f"kind {kind!r}")
    knots = np.array([fields["scores"], fields["probabilities"]], dtype=np.float64)
    inside = ((knots[1] > 0) & (knots[1] < 1)).all()
    if knots.ndim != 2 or not knots.size or not inside or (np.diff(knots) < 0).any():
        raise ValueError("isotonic knots that do not rise inside 0 and 1")
    return Isotonic(*knots)
