"""Calibration against brute force, scipy and scikit-learn; ECE against a worked example."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import log_loss

from plant_dist.config.schema import EvaluateConfig
from plant_dist.errors import ArtifactError
from plant_dist.metrics.bands import BANDS, band_labels, band_name, band_numbers
from plant_dist.metrics.calibration import (
    Calibration,
    Isotonic,
    Temperature,
    fit_calibration,
)
from plant_dist.metrics.evaluator import Evaluator
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.order import rank_labels
from plant_dist.metrics.reliability import BINS, calibration_report
from plant_dist.metrics.report import write_report
from plant_dist.metrics.retained import Predictions

FREQUENCY = np.array([0, 2, 4, 7, 9, 20, 30, 60, 100, 150, 200, 999])
LABELS = len(FREQUENCY)
FAR = np.log(10)


def keep_best(scores: np.ndarray, truth: np.ndarray, width: int) -> Predictions:
    rows, ids = truth.nonzero()
    gold = Gold.checked(np.searchsorted(rows, np.arange(len(truth) + 1)), ids, truth.shape[1])
    ranking = rank_labels(scores, gold, width)
    return Predictions(ranking.label_ids, ranking.scores, gold, ranking.gold_ranks)


def corpus(seed: int, documents: int = 80, grid: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are overconfident by a factor of the label, and what they were drawn from."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(-1.5, 1.5, size=(documents, LABELS))
    truth = generator.random(logits.shape) < expit(logits)
    scale = np.where(FREQUENCY > 10, 3.0, 0.5)
    return np.round(logits * scale, grid).astype(np.float32), truth


def pairs_of(predictions: Predictions, band: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    chosen = predictions.label_ids >= 0
    if band is not None:
        chosen &= band_numbers(FREQUENCY)[predictions.label_ids] == band
    return predictions.scores[chosen].astype(np.float64), predictions.hits()[chosen]


@given(st.integers(0, 2**31), st.sampled_from([5, LABELS]), st.sampled_from([0, 2]))
@settings(max_examples=25, deadline=None)
def test_a_temperature_is_the_optimum_of_the_log_loss(seed: int, width: int, grid: int) -> None:
    predictions = keep_best(*corpus(seed, grid=grid), width)
    found = fit_calibration(predictions, FREQUENCY, "temperature", min_positives=1)
    assert found is not None
    for number, one in enumerate(found.bands):
        if not one.own:
            continue
        scores, hits = pairs_of(predictions, number)
        assert (one.pairs, one.positives) == (len(scores), hits.sum())

        def loss(log_t: float, scores: np.ndarray = scores, hits: np.ndarray = hits) -> float:
            z = scores / np.exp(log_t)
            return float(np.logaddexp(0, np.where(hits, -z, z)).sum())

        best = minimize_scalar(loss, bounds=(-FAR, FAR), method="bounded",
                               options={"xatol": 1e-10})  # fmt: skip
        ours = np.log(one.curve.temperature)
        assert loss(ours) <= best.fun * (1 + 1e-9) + 1e-9
        # A search by hand, which no bracket can mislead.
        assert loss(ours) <= min(loss(x) for x in np.linspace(-FAR, FAR, 400)) + 1e-9


def test_a_temperature_finds_the_factor_it_was_spoilt_by() -> None:
    scores, truth = corpus(0, documents=4000)
    found = fit_calibration(keep_best(scores, truth, LABELS), FREQUENCY, "temperature", 50)
    assert found is not None
    temperatures = {one.name: one.curve.temperature for one in found.bands}
    assert [temperatures[name] for name in ("11-50", ">100")] == pytest.approx([3, 3], rel=0.1)
    assert [temperatures[name] for name in ("1-5", "6-10")] == pytest.approx([0.5, 0.5], rel=0.1)


@given(st.integers(0, 2**31), st.sampled_from([4, LABELS]), st.sampled_from([0, 2]))
@settings(max_examples=25, deadline=None)
def test_isotonic_equals_scikit_learn(seed: int, width: int, grid: int) -> None:
    predictions = keep_best(*corpus(seed, grid=grid), width)
    found = fit_calibration(predictions, FREQUENCY, "isotonic", min_positives=3)
    assert found is not None
    everything = pairs_of(predictions)
    for number, one in enumerate(found.bands):
        scores, hits = pairs_of(predictions, number) if one.own else everything
        theirs = IsotonicRegression(y_min=1e-6, y_max=1 - 1e-6, out_of_bounds="clip")
        theirs.fit(scores, hits)
        asked = np.linspace(-12, 12, 301).astype(np.float32)
        label = int(np.flatnonzero(band_numbers(FREQUENCY) == number)[0])
        ours = expit(found.scores(np.full(301, label), asked).astype(np.float64))
        np.testing.assert_allclose(ours, theirs.predict(asked), rtol=1e-4, atol=1e-6)


def test_bands_of_too_few_positives_take_the_map_of_all() -> None:
    predictions = keep_best(*corpus(3), LABELS)
    positives = [int(pairs_of(predictions, number)[1].sum()) for number in range(len(BANDS))]
    least = sorted(positives)[3]
    found = fit_calibration(predictions, FREQUENCY, "temperature", least)
    whole = fit_calibration(predictions, np.zeros(LABELS, int), "temperature", 1)
    assert found is not None
    assert whole is not None
    assert [one.own for one in found.bands] == [count >= least for count in positives]
    shared = {one.curve.temperature for one in found.bands if not one.own}
    # Summed in another order, over steps that bands do not cut in two.
    assert all(t == pytest.approx(whole.bands[0].curve.temperature, rel=1e-9) for t in shared)
    assert len(shared) == 1


def test_without_gold_there_is_nothing_to_fit() -> None:
    scores, truth = corpus(0)
    predictions = keep_best(scores, np.zeros_like(truth), LABELS)
    assert fit_calibration(predictions, FREQUENCY, "isotonic", 1) is None


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_scores_inside_a_label_keep_their_order(kind: str) -> None:
    scores, truth = corpus(5)
    found = fit_calibration(keep_best(scores, truth, LABELS), FREQUENCY, kind, 20)
    assert found is not None
    labels = np.broadcast_to(np.arange(LABELS), scores.shape)
    calibrated = found.scores(labels, scores)
    assert not np.array_equal(calibrated, scores)
    order = np.argsort(scores, axis=0, kind="stable")
    risen = np.diff(np.take_along_axis(calibrated, order, axis=0), axis=0)
    apart = np.diff(np.take_along_axis(scores, order, axis=0), axis=0) > 0
    assert (risen >= 0).all()
    if kind == "temperature":
        assert (risen[apart] > 0).all()


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_floors_decide_as_calibrated_scores_do(kind: str) -> None:
    scores, truth = corpus(6)
    found = fit_calibration(keep_best(scores, truth, LABELS), FREQUENCY, kind, 20)
    assert found is not None
    labels = np.broadcast_to(np.arange(LABELS), scores.shape)
    calibrated = found.scores(labels, scores)
    # Thresholds that scores reach exactly are the hard ones.
    for wanted in (*calibrated[:20], np.full(LABELS, 9e9, np.float32)):
        floors = found.floors(wanted)
        np.testing.assert_array_equal(scores >= floors, calibrated >= wanted)
        reached = np.isfinite(floors)
        assert (found.scores(np.arange(LABELS), floors) >= wanted)[reached].all()
        # The float32 below each floor is below it in truth, unless there is none.
        lowest = floors == -np.finfo(np.float32).max
        under = np.nextafter(np.where(lowest, 0, floors), np.float32(-np.inf))
        below = found.scores(np.arange(LABELS), under)
        assert (below < wanted)[~lowest].all()


def test_removed_predictions_stay_removed() -> None:
    scores, truth = corpus(7)
    scores[:, 3] = -np.inf
    predictions = keep_best(scores, truth, LABELS)
    found = fit_calibration(predictions, FREQUENCY, "isotonic", 20)
    assert found is not None
    applied = found.apply(predictions)
    np.testing.assert_array_equal(applied.label_ids, predictions.label_ids)
    assert np.isneginf(applied.scores[predictions.label_ids < 0]).all()
    assert np.isfinite(applied.scores[predictions.label_ids >= 0]).all()


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_a_calibration_survives_json_exactly(kind: str, tmp_path: Path) -> None:
    scores, truth = corpus(8)
    found = fit_calibration(keep_best(scores, truth, LABELS), FREQUENCY, kind, 20)
    assert found is not None
    found.save(tmp_path / "calibration.json")
    loaded = Calibration.load(tmp_path / "calibration.json", FREQUENCY)
    labels = np.broadcast_to(np.arange(LABELS), scores.shape)
    np.testing.assert_array_equal(loaded.scores(labels, scores), found.scores(labels, scores))
    assert loaded.describe() == found.describe()
    assert len({one["own"] for one in found.describe()}) == 2


BAND = {"pairs": 3, "positives": 1, "own": True}
BROKEN = {
    "not JSON": "{",
    "a key absent": {"kind": "temperature"},
    "no temperature": {"kind": "temperature", "bands": [BAND | {"band": "0"}]},
    "other bands": {"kind": "temperature", "bands": [BAND | {"band": "0", "temperature": 1.0}]},
    "temperature below 0": {
        "kind": "temperature", "bands": [BAND | {"band": "0", "temperature": -1.0}],
    },
    "falling knots": {
        "kind": "isotonic",
        "bands": [BAND | {"band": "0", "scores": [0, 1], "probabilities": [0.5, 0.4]}],
    },
    "unknown kind": {"kind": "magic", "bands": [BAND | {"band": "0", "temperature": 1.0}]},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_calibrations_are_refused(name: str, tmp_path: Path) -> None:
    content = BROKEN[name]
    path = tmp_path / "calibration.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ArtifactError, match=r"calibration\.json.*run the train stage again"):
        Calibration.load(path, FREQUENCY)


def test_band_numbers_agree_with_the_bands_of_the_report() -> None:
    frequency = np.arange(130)
    numbers = band_numbers(frequency)
    named = band_labels(frequency, np.zeros(130, bool))
    for number, limits in enumerate(BANDS):
        np.testing.assert_array_equal(numbers == number, named[band_name(*limits)])


def test_ece_worked_by_hand() -> None:
    """Probabilities 0.9, 0.9, 0.1, 0.5; right: yes, no, no, yes.

    Bins: |1 - 1.8| + |0 - 0.1| + |1 - 0.5| = 1.4 over 4 predictions.
    """
    scores = np.log(np.array([[9.0, 1 / 9], [9.0, 1.0]], np.float32))
    truth = np.array([[True, False], [False, True]])
    report = calibration_report(keep_best(scores, truth, 2), np.array([0, 7]), (1,), None)
    assert report.before["all 2"].ece == pytest.approx(1.4 / 4)
    assert report.before["best 1"].ece == pytest.approx(0.8 / 2)
    assert report.before["labels 0"].ece == pytest.approx(0.8 / 2)
    assert report.before["labels 6-10"].ece == pytest.approx(0.6 / 2)
    wanted = -np.log([0.9, 0.1, 0.9, 0.5]).mean()
    assert report.before["all 2"].log_loss == pytest.approx(wanted, rel=1e-6)
    assert set(report.before) == {"all 2", "best 1", "labels 0", "labels 6-10"}
    assert report.after is None


def ece_by_loops(probability: np.ndarray, hits: np.ndarray) -> float:
    total = 0.0
    for number in range(BINS):
        low, high = number / BINS, (number + 1) / BINS
        inside = (probability >= low) & ((probability < high) | (number == BINS - 1))
        if inside.any():
            gap = abs(hits[inside].mean() - probability[inside].mean())
            total += inside.mean() * gap
    return total


@given(st.integers(0, 2**31), st.sampled_from([6, LABELS]))
@settings(max_examples=25, deadline=None)
def test_reliability_equals_plain_loops_and_scikit_learn(seed: int, width: int) -> None:
    scores, truth = corpus(seed, documents=30)
    predictions = keep_best(scores, truth, width)
    found = calibration_report(predictions, FREQUENCY, (1, 5), None).before
    raw, hits = pairs_of(predictions)
    scopes = {f"all {width}": (raw, hits)}
    for k in (1, 5):
        head, right = predictions.scores[:, :k], predictions.hits()[:, :k]
        scopes[f"best {k}"] = head.ravel().astype(np.float64), right.ravel()
    for number, limits in enumerate(BANDS):
        scopes[f"labels {band_name(*limits)}"] = pairs_of(predictions, number)
    for scope, (one, right) in scopes.items():
        assert found[scope].ece == pytest.approx(ece_by_loops(expit(one), right), abs=1e-9)
        wanted = log_loss(right, expit(one), labels=[False, True])
        assert found[scope].log_loss == pytest.approx(wanted, rel=1e-9)


def test_calibration_mends_held_out_documents() -> None:
    learn, (scores, truth) = keep_best(*corpus(10, 1500), LABELS), corpus(11, 1500)
    for kind in ("temperature", "isotonic"):
        found = fit_calibration(learn, FREQUENCY, kind, 30)
        report = calibration_report(keep_best(scores, truth, LABELS), FREQUENCY, (5,), found)
        assert report.after is not None
        for scope in ("best 5", f"all {LABELS}"):
            assert report.after[scope].ece < 0.4 * report.before[scope].ece
            assert report.after[scope].log_loss < report.before[scope].log_loss


CONFIG = EvaluateConfig(ks=(1, 5), calibration="temperature", min_band_positives=20)


def evaluator(rows: slice, kind: str = "temperature") -> Evaluator:
    scores, truth = corpus(12)
    config = EvaluateConfig(ks=(1, 5), calibration=kind, min_band_positives=20)
    made = Evaluator(FREQUENCY, 1000, config, documents=len(scores))
    held, ids = truth[rows].nonzero()
    offsets = np.searchsorted(held, np.arange(len(truth[rows]) + 1))
    made.add(torch.from_numpy(scores[rows]), offsets, ids)
    return made


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_two_merged_evaluators_calibrate_as_one(kind: str) -> None:
    whole, merged = evaluator(slice(None), kind), evaluator(slice(0, None, 2), kind)
    merged.merge(evaluator(slice(1, None, 2), kind))
    one, two = whole.calibration(), merged.calibration()
    assert one is not None
    assert two is not None
    labels = np.arange(LABELS)
    for score in np.linspace(-9, 9, 25, dtype=np.float32):
        asked = np.full(LABELS, score)
        np.testing.assert_array_equal(one.scores(labels, asked), two.scores(labels, asked))
    left, right = whole.reliability(one), merged.reliability(two)
    for scope, found in left.before.items():
        np.testing.assert_array_equal(found.counts, right.before[scope].counts)
        assert found.ece == pytest.approx(right.before[scope].ece, rel=1e-12)
    assert left.after is not None
    assert right.after is not None
    assert left.after["best 5"].ece == pytest.approx(right.after["best 5"].ece, rel=1e-12)
    np.testing.assert_array_equal(
        whole.thresholds(one).by_label(), merged.thresholds(two).by_label()
    )


def test_calibration_changes_decisions_and_no_ranking() -> None:
    made = evaluator(slice(None))
    calibration = made.calibration()
    tuned, raw = made.thresholds(calibration), made.thresholds()
    assert (tuned.calibrated, raw.calibrated) == (True, False)
    with_it, without = made.results(tuned, calibration), made.results(raw)
    ranked = [name for name in without.metrics if "@" in name or "map" in name or "auc" in name]
    assert {n: with_it.metrics[n] for n in ranked} == {n: without.metrics[n] for n in ranked}
    # One threshold on calibrated scores is one for each band on the model's own.
    assert with_it.metrics["micro_f1"] > without.metrics["micro_f1"]
    best = np.argmax(with_it.curve.f1)
    assert with_it.curve.f1[best] == pytest.approx(with_it.metrics["micro_f1"], abs=0.02)


def test_no_calibration_is_fitted_unless_asked_for() -> None:
    assert evaluator(slice(None), "none").calibration() is None


def test_the_report_shows_both_and_says_over_what(tmp_path: Path) -> None:
    made = evaluator(slice(None))
    calibration = made.calibration()
    results = made.results(made.thresholds(calibration), calibration)
    files = write_report(tmp_path, "PLANT", results, reliability=made.reliability(calibration))
    assert (tmp_path / "reliability.png") in files
    content = json.loads((tmp_path / "report.json").read_text())["calibration"]
    assert content["kind"] == "temperature"
    assert content["after"]["all 12"]["ece"] < content["before"]["all 12"]["ece"]
    assert len(content["before"]["best 1"]["bins"]["counts"]) == BINS
    text = (tmp_path / "report.md").read_text()
    shown = [line for line in text.splitlines() if line.startswith("| all 12 |")]
    cells = [f"{100 * content[when]['all 12']['ece']:.2f}" for when in ("before", "after")]
    assert all(f"| {cell} |" in shown[0] for cell in cells)
    assert "the k best labels of each document" in text
    assert "Scores here are calibrated" in text


def test_extremes_stay_finite() -> None:
    """Separable scores would like an infinite sharpness, inverted ones an infinite softness."""
    truth = np.array([[True], [False]])
    for sign in (1, -1):
        scores = sign * np.array([[3.0], [-3.0]], np.float32)
        found = fit_calibration(keep_best(scores, truth, 1), np.array([5]), "temperature", 1)
        assert found is not None
        assert found.bands[1].curve == Temperature(0.1 if sign == 1 else 10.0)
    found = fit_calibration(keep_best(scores, truth, 1), np.array([5]), "isotonic", 1)
    assert found is not None
    assert isinstance(found.bands[1].curve, Isotonic)
    assert np.isfinite(found.scores(np.zeros(1, int), np.float32([40.0]))).all()
