from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (
    average_precision_score,
    jaccard_score,
    precision_recall_fscore_support,
)

from plant_dist.metrics.faithfulness import best_share, comprehensiveness, sufficiency
from plant_dist.metrics.plausibility import (
    MEASURES,
    Plausibility,
    average_precision,
    relative,
    runs,
    span_counts,
    token_iou,
)
from plant_dist.metrics.significance import paired_bootstrap

# Few distinct scores, so that ties are frequent.
SCORES = arrays(np.float64, 12, elements=st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0, 3.0]))
MASKS = arrays(np.bool_, 12)


def mask(*places: int, size: int = 10) -> np.ndarray:
    made = np.zeros(size, dtype=bool)
    made[list(places)] = True
    return made


@given(MASKS, MASKS)
def test_tokens_agree_with_scikit_learn(predicted: np.ndarray, gold: np.ndarray) -> None:
    gathered = Plausibility()
    gathered.add(predicted.astype(float), gold)
    found = gathered.results(0.5)
    expected = precision_recall_fscore_support(gold, predicted, average="binary", zero_division=0)
    names = ("token_precision", "token_recall", "token_f1")
    assert [found[name] for name in names] == pytest.approx(expected[:3])
    iou = jaccard_score(gold, predicted, zero_division=0)
    assert token_iou(predicted, gold) == found["iou"] == pytest.approx(iou)


@given(SCORES, MASKS)
def test_average_precision_is_scikit_learns(scores: np.ndarray, gold: np.ndarray) -> None:
    if not gold.any():
        assert math.isnan(average_precision(scores, gold))
    else:
        expected = average_precision_score(gold, scores)
        assert average_precision(scores, gold) == pytest.approx(expected)


def test_runs() -> None:
    assert runs(mask(0, 1, 4, 9)).tolist() == [[0, 2], [4, 5], [9, 10]]
    assert runs(mask()).tolist() == []
    assert runs(mask(*range(10))).tolist() == [[0, 10]]


@given(MASKS)
def test_runs_cover_the_mask_and_do_not_touch(drawn: np.ndarray) -> None:
    found = runs(drawn)
    again = np.zeros_like(drawn)
    for start, end in found:
        again[start:end] = True
    assert (again == drawn).all()
    assert (found[1:, 0] > found[:-1, 1]).all()


def test_spans_by_hand() -> None:
    gold = np.array([[0, 4], [6, 8]])
    # [0, 2) shares 2 of 4 with the first; [7, 10) shares 1 of 4 with the second; [5, 9) 2 of 4.
    assert span_counts(np.array([[0, 2]]), gold) == (1, 1, 1, 2)
    assert span_counts(np.array([[7, 10]]), gold) == (0, 1, 0, 2)
    assert span_counts(np.array([[0, 2], [5, 9], [20, 22]]), gold) == (2, 3, 2, 2)
    # One predicted span may find two gold ones, where a third is asked for.
    wide = span_counts(np.array([[0, 6]]), np.array([[0, 3], [3, 6]]))
    assert wide == (1, 1, 2, 2)
    assert span_counts(runs(mask()), gold) == (0, 0, 0, 2)


def test_relative_scores() -> None:
    assert relative(np.array([-4.0, 0.0, 1.0, 2.0])).tolist() == [0.0, 0.0, 0.5, 1.0]
    assert relative(np.array([-4.0, -1.0])).tolist() == [0.0, 0.0]
    assert relative(np.zeros(0)).tolist() == []


@given(st.lists(st.tuples(SCORES, MASKS), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_the_best_threshold_is_the_best_of_all(pairs: list[tuple[np.ndarray, np.ndarray]]) -> None:
    gathered = Plausibility()
    for scores, gold in pairs:
        gathered.add(scores, gold)
    best = gathered.results(gathered.best_threshold())["token_f1"]
    tried = [gathered.results(one)["token_f1"] for one in (*np.arange(0.01, 1.02, 0.01), 1 / 3)]
    assert best == pytest.approx(max(tried))


def test_results_by_hand() -> None:
    gathered = Plausibility()
    # First: predicted 1 and 2 (shares 1 and .5), gold 2 and 3. Second: all wrong.
    gathered.add(np.array([0.0, 2.0, 1.0, 0.0, 0.5]), mask(2, 3, size=5))
    gathered.add(np.array([4.0, -9.0, 0.0]), mask(2, size=3))
    found = gathered.results(0.5)
    assert found["pairs"] == 2
    assert (found["token_precision"], found["token_recall"]) == (1 / 3, 1 / 3)
    assert found["iou"] == pytest.approx((1 / 3 + 0) / 2)
    # The span [1, 3) shares 1 token of 3 with [2, 4): not found.
    assert found["span_f1"] == 0.0
    # First: gold at ranks 2 and in the tie of ranks 4, 5: 1/2 · 1/2 + 1/2 · 2/5; second: rank 2.
    assert found["auprc"] == pytest.approx((0.45 + 0.5) / 2)
    # A score of 0 is never predicted, whatever the threshold.
    assert gathered.results(0.0)["token_precision"] == pytest.approx(1 / 4)


@given(st.lists(st.tuples(SCORES, MASKS, st.sampled_from("abc")), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_documents_drawn_twice_count_twice(
    pairs: list[tuple[np.ndarray, np.ndarray, str]],
) -> None:
    gathered, again = Plausibility(), Plausibility()
    times = {"a": 2, "b": 0, "c": 1}
    for scores, gold, document in pairs:
        gathered.add(scores, gold, document)
        for _ in range(times[document]):
            again.add(scores, gold, document)
    present = dict.fromkeys(document for *_, document in pairs)
    weights = np.array([[times[document] for document in present]], dtype=float)
    expected = again.sums(0.3).measures()
    for name in MEASURES:
        found = gathered.sums(0.3).measure(name).of(weights)
        assert found[0] == pytest.approx(expected[name]), name


def test_groups_keep_their_pairs_and_all_documents() -> None:
    gathered = Plausibility()
    gathered.add(np.array([1.0, 0.0]), mask(0, size=2), "a", "rare")
    gathered.add(np.array([0.0, 1.0]), mask(0, size=2), "b", "frequent")
    rare, both = gathered.sums(0.5, {"rare"}), gathered.sums(0.5)
    assert (rare.pairs, rare.measures()["auprc"]) == (1, 1.0)
    assert (both.pairs, both.measures()["auprc"]) == (2, 0.75)
    # Of the same documents, so that they can be compared.
    compared = paired_bootstrap(rare.measure("auprc"), both.measure("auprc"), resamples=50)
    assert compared.difference == 0.25


def test_the_best_share_of_tokens() -> None:
    scores = np.array([0.1, 0.5, 0.5, -1.0])
    assert best_share(scores, 0.25).tolist() == [False, True, False, False]
    assert best_share(scores, 0.5).tolist() == [False, True, True, False]
    assert best_share(scores, 0.01).sum() == 1
    assert best_share(np.arange(30.0), 0.1).sum() == 3
    assert best_share(scores, 1.0).all()


def test_faithfulness_by_hand() -> None:
    assert comprehensiveness(0.9, [0.9, 0.5, 0.1]) == pytest.approx(0.4)
    assert sufficiency(0.9, [0.3, 0.9, 1.0]) == pytest.approx(0.9 - 2.2 / 3)
