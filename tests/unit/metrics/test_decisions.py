"""AUC, thresholds and F1 against scikit-learn and exhaustive search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_recall_fscore_support, roc_auc_score

from plant_dist.errors import ArtifactError
from plant_dist.metrics.auc import label_auc, micro_auc
from plant_dist.metrics.classification import LabelTally, decision_scores, macro_scores
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.order import rank_labels
from plant_dist.metrics.retained import Predictions
from plant_dist.metrics.sweep import label_sweeps, micro_sweep
from plant_dist.metrics.thresholds import Thresholds, tune_thresholds


def keep_best(scores: np.ndarray, truth: np.ndarray, width: int) -> Predictions:
    rows, ids = truth.nonzero()
    offsets = np.searchsorted(rows, np.arange(len(truth) + 1))
    gold = Gold.checked(offsets, ids, truth.shape[1])
    ranking = rank_labels(scores, gold, width)
    return Predictions(ranking.label_ids, ranking.scores, gold, ranking.gold_ranks)


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Scores on a coarse grid (many ties) around zero, and truth of any density."""
    shape = (draw(st.integers(2, 12)), draw(st.integers(2, 7)))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    truth = generator.random(shape) < draw(st.sampled_from([0.05, 0.3, 0.7]))
    scores = truth * draw(st.sampled_from([0.0, 1.0])) + generator.normal(size=shape)
    return np.round(scores, draw(st.sampled_from([0, 1, 6]))).astype(np.float32), truth


def sklearn_label_auc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return np.array(
        [
            roc_auc_score(gold, column) if 0 < gold.sum() < len(gold) else np.nan
            for gold, column in zip(truth.T, scores.T, strict=True)
        ]
    )


@given(problems())
@settings(max_examples=80, deadline=None)
def test_auc_equals_scikit_learn_when_all_is_retained(
    problem: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, truth = problem
    predictions = keep_best(scores, truth, truth.shape[1])
    ours = label_auc(predictions, truth.shape[1])
    np.testing.assert_allclose(ours, sklearn_label_auc(truth, scores), rtol=1e-12)
    if 0 < truth.sum() < truth.size:
        theirs = roc_auc_score(truth.ravel(), scores.ravel())
        assert micro_auc(predictions, truth.shape[1]) == pytest.approx(theirs, rel=1e-12)
    else:
        assert np.isnan(micro_auc(predictions, truth.shape[1]))


@given(problems(), st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_auc_of_truncated_predictions_ties_the_rest_at_the_bottom(
    problem: tuple[np.ndarray, np.ndarray], width: int
) -> None:
    scores, truth = problem
    predictions = keep_best(scores, truth, width)
    cut = np.full(scores.shape, -1e6, np.float32)
    np.put_along_axis(cut, predictions.label_ids, predictions.scores, axis=1)
    ours = label_auc(predictions, truth.shape[1])
    np.testing.assert_allclose(ours, sklearn_label_auc(truth, cut), rtol=1e-12)
    if 0 < truth.sum() < truth.size:
        theirs = roc_auc_score(truth.ravel(), cut.ravel())
        assert micro_auc(predictions, truth.shape[1]) == pytest.approx(theirs, rel=1e-12)


def best_f1_by_search(scores: np.ndarray, truth: np.ndarray) -> float:
    return max(
        f1_score(truth.ravel(), (scores >= threshold).ravel(), zero_division=0)
        for threshold in np.unique(scores)
    )


@given(problems())
@settings(max_examples=25, deadline=None)
def test_tuned_thresholds_reach_the_best_f1_of_an_exhaustive_search(
    problem: tuple[np.ndarray, np.ndarray],
) -> None:
    scores, truth = problem
    labels = truth.shape[1]
    predictions = keep_best(scores, truth, labels)
    thresholds = tune_thresholds(predictions, labels, "global", min_label_positives=1)
    # One score for all labels.
    by_global = f1_score(
        truth, scores >= np.float32(thresholds.global_score), average="micro", zero_division=0
    )
    assert by_global == pytest.approx(best_f1_by_search(scores, truth))
    # A score of its own for each label with gold.
    own = thresholds.by_label()
    for label in range(labels):
        if truth[:, label].any():
            column = scores[:, label] >= own[label]
            wanted = best_f1_by_search(scores[:, label], truth[:, label])
            assert f1_score(truth[:, label], column) == pytest.approx(wanted)
        else:
            assert own[label] == np.float32(thresholds.global_score)
    # A number of labels.
    order = np.argsort(-scores, axis=1, kind="stable")
    by_k = []
    for k in range(1, labels + 1):
        chosen = np.zeros_like(truth)
        np.put_along_axis(chosen, order[:, :k], True, axis=1)
        by_k.append(f1_score(truth, chosen, average="micro", zero_division=0))
    assert by_k[thresholds.top_k - 1] == pytest.approx(max(by_k))


def test_rare_labels_fall_back_to_the_global_threshold() -> None:
    scores = np.array([[0.9, 0.2], [0.8, 0.1], [0.7, 0.05], [0.5, 0.4]], np.float32)
    truth = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], bool)
    predictions = keep_best(scores, truth, 2)
    own = {
        least: tune_thresholds(predictions, 2, "per_label", least).by_label()[1] for least in (1, 2)
    }
    assert own[1] == pytest.approx((0.2 + 0.1) / 2)
    assert own[2] == pytest.approx((0.7 + 0.5) / 2)


def test_a_threshold_separates_neighbouring_floats() -> None:
    """Halfway between two adjacent float32 rounds onto one of them; never onto the lower."""
    low = np.float32(0.3)
    for _ in range(4):
        high = np.nextafter(low, np.float32(1))
        truth = np.array([[True], [False]])
        predictions = keep_best(np.array([[high], [low]]), truth, 1)
        score = tune_thresholds(predictions, 1, "global", 1).global_score
        assert np.float32(score) == high
        low = high


def test_label_sweeps_in_small_blocks_cover_each_label_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=(30, 9)).astype(np.float32)
    truth = generator.random((30, 9)) < 0.3
    predictions = keep_best(scores, truth, 9)
    whole = label_auc(predictions, 9)
    monkeypatch.setattr("plant_dist.metrics.sweep._BLOCK", 40)
    monkeypatch.setattr("plant_dist.metrics.retained._BLOCK", 40)
    sweeps = list(label_sweeps(predictions))
    assert len(sweeps) > 3
    seen = np.concatenate([sweep.groups[sweep.starts] for sweep in sweeps])
    assert seen.tolist() == list(range(9))
    np.testing.assert_array_equal(label_auc(predictions, 9), whole)


def test_sweep_counts_worked_by_hand() -> None:
    scores = np.array([[0.5, -1.0], [0.5, 2.0]], np.float32)
    truth = np.array([[True, False], [False, True]])
    sweep = micro_sweep(keep_best(scores, truth, 2))
    assert sweep.scores.tolist() == [2.0, 0.5, -1.0]
    assert sweep.true_positives.tolist() == [1, 2, 2]
    assert sweep.predicted.tolist() == [1, 3, 4]
    assert sweep.thresholds().tolist() == [1.25, -0.25, -1.0]


@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.2, 0.6]))
@settings(max_examples=40, deadline=None)
def test_f1_equals_scikit_learn(seed: int, density: float) -> None:
    generator = np.random.default_rng(seed)
    truth, chosen = generator.random((2, 15, 6)) < density
    tally = LabelTally.of(
        6, (truth & chosen).nonzero()[1], (~truth & chosen).nonzero()[1], truth.nonzero()[1]
    )
    ours = decision_scores(tally)
    for average in ("micro", "macro"):
        theirs = precision_recall_fscore_support(truth, chosen, average=average, zero_division=0)
        names = [f"{average}_{name}" for name in ("precision", "recall", "f1")]
        assert [ours[name] for name in names] == pytest.approx(theirs[:3])
    present = np.flatnonzero(truth.any(axis=0))
    if len(present):
        theirs = f1_score(truth, chosen, labels=present, average="macro", zero_division=0)
        assert ours["macro_f1_present"] == pytest.approx(theirs)


def test_the_two_macro_definitions_differ_as_worked_by_hand() -> None:
    """Label 0: P 1/2, R 1; label 1: P 1, R 1/4; label 2: never gold nor chosen."""
    tally = LabelTally(np.array([1, 1, 0]), np.array([1, 0, 0]), np.array([0, 3, 0]))
    over_all, over_present = macro_scores(tally), macro_scores(tally.among(tally.present))
    assert over_present["macro_f1"] == pytest.approx((2 / 3 + 2 / 5) / 2)
    assert over_present["macro_f1_caml"] == pytest.approx(2 * 0.75 * 0.625 / (0.75 + 0.625))
    assert over_all["macro_f1"] == pytest.approx((2 / 3 + 2 / 5) / 3)
    assert over_all["macro_f1_caml"] == pytest.approx(2 * 0.5 * (1.25 / 3) / (0.5 + 1.25 / 3))


def test_thresholds_survive_json_exactly(tmp_path: Path) -> None:
    scores = np.float32(np.random.default_rng(1).normal(size=(40, 5)) / 3)
    truth = np.random.default_rng(2).random((40, 5)) < 0.4
    tuned = tune_thresholds(keep_best(scores, truth, 5), 5, "per_label", 3)
    tuned.save(tmp_path / "thresholds.json")
    loaded = Thresholds.load(tmp_path / "thresholds.json")
    assert len(tuned.label_ids) == 5
    np.testing.assert_array_equal(loaded.by_label(), tuned.by_label())
    assert (loaded.rule, loaded.top_k, loaded.labels) == ("per_label", tuned.top_k, 5)
    ids = np.broadcast_to(np.arange(5, dtype=np.int32), scores.shape)
    for rule in ("global", "per_label", "top_k"):
        chosen = loaded.decide(ids, scores, rule)
        np.testing.assert_array_equal(chosen, tuned.decide(ids, scores, rule))
    assert not loaded.decide(np.full_like(ids, -1), scores).any()


WHOLE = {"rule": "global", "global": 0.5, "top_k": 1, "labels": 2}


@pytest.mark.parametrize(
    "text",
    [
        "{",
        json.dumps(WHOLE),
        json.dumps(WHOLE | {"rule": "best", "per_label": {"ids": [1], "scores": [0.1]}}),
        json.dumps(WHOLE | {"per_label": {"ids": [2], "scores": [0.1]}}),
        json.dumps(WHOLE | {"per_label": {"ids": [0, 1], "scores": [0.1]}}),
    ],
    ids=["not JSON", "a key absent", "unknown rule", "unknown label", "lengths differ"],
)
def test_broken_thresholds_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "thresholds.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"thresholds\.json"):
        Thresholds.load(path)


def test_missing_thresholds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="run the train stage"):
        Thresholds.load(tmp_path / "thresholds.json")


def test_nothing_ranked_predicts_nothing() -> None:
    truth = np.array([[True, False]])
    predictions = keep_best(np.full((1, 2), -np.inf, np.float32), truth, 2)
    thresholds = tune_thresholds(predictions, 2, "global", 1)
    for rule in ("global", "per_label", "top_k"):
        assert not thresholds.decide(predictions.label_ids, predictions.scores, rule).any()
    assert micro_auc(predictions, 2) == 0.5
    assert np.isnan(label_auc(predictions, 2)).all()
