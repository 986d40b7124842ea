"""Ranking metrics against napkinXC, brute force and a page worked by hand."""

from __future__ import annotations

import math

import napkinxc.metrics as oracle
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.errors import DataError
from plant_dist.metrics.gold import Gold
from plant_dist.metrics.order import rank_labels
from plant_dist.metrics.ranking import RankingSums, inverse_propensities


def make_gold(lists: list[list[int]], labels: int) -> Gold:
    offsets = np.cumsum([0] + [len(row) for row in lists])
    return Gold.checked(offsets, np.array([x for row in lists for x in row], dtype=int), labels)


def sorted_labels(scores: np.ndarray) -> list[int]:
    """The documented order: falling score, then rising label; -inf is no candidate."""
    order = sorted(range(len(scores)), key=lambda label: (-scores[label], label))
    return [label for label in order if scores[label] != -np.inf]


@st.composite
def problems(draw: st.DrawFn) -> tuple[np.ndarray, list[list[int]]]:
    """Scores with many ties, some removed labels, and gold rows of any size."""
    documents, labels = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    value = st.sampled_from([-np.inf, -2.5, -0.0, 0.0, 0.25, 1.0, 3.0])
    rows = st.lists(value, min_size=labels, max_size=labels)
    scores = np.array(draw(st.lists(rows, min_size=documents, max_size=documents)), np.float32)
    row = st.lists(st.integers(0, labels - 1), unique=True, max_size=labels)
    return scores, draw(st.lists(row, min_size=documents, max_size=documents))


@given(problems(), st.integers(1, 12))
@settings(max_examples=200, deadline=None)
def test_order_and_ranks_equal_a_plain_sort(
    problem: tuple[np.ndarray, list[list[int]]], keep: int
) -> None:
    scores, lists = problem
    gold = make_gold(lists, scores.shape[1])
    ranking = rank_labels(torch.from_numpy(scores), gold, keep)
    ranks = iter(ranking.gold_ranks)
    for row, labels in enumerate(lists):
        order = sorted_labels(scores[row])
        wanted = order[:keep]
        kept = ranking.label_ids[row]
        assert kept[kept >= 0].tolist() == wanted
        assert ranking.scores[row][kept >= 0].tolist() == scores[row][wanted].tolist()
        for label in labels:
            assert next(ranks) == (order.index(label) + 1 if label in order else 0)


@given(problems(), st.integers(1, 12), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_a_shuffled_shortlist_of_all_labels_ranks_like_the_dense_row(
    problem: tuple[np.ndarray, list[list[int]]], keep: int, random: object
) -> None:
    scores, lists = problem
    gold = make_gold(lists, scores.shape[1])
    shuffled = np.stack([random.sample(range(scores.shape[1]), scores.shape[1]) for _ in scores])  # type: ignore[attr-defined]
    ids = np.concatenate([shuffled, np.full((len(scores), 2), -1)], axis=1)
    listed = np.concatenate(
        [np.take_along_axis(scores, shuffled, 1), np.full((len(scores), 2), 9.0, np.float32)], 1
    )
    dense, sparse = rank_labels(scores, gold, keep), rank_labels(listed, gold, keep, ids)
    width = dense.label_ids.shape[1]
    np.testing.assert_array_equal(sparse.label_ids[:, :width], dense.label_ids)
    np.testing.assert_array_equal(sparse.gold_ranks, dense.gold_ranks)


def test_a_label_off_the_shortlist_is_never_retrieved() -> None:
    gold = make_gold([[0, 4]], labels=5)
    ranking = rank_labels(np.array([[-9.0, -7.0]]), gold, 5, label_ids_BK=np.array([[4, 2]]))
    assert ranking.label_ids.tolist() == [[2, 4]]
    assert ranking.gold_ranks.tolist() == [0, 2]


def test_ranks_counted_in_several_parts_equal_those_counted_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 40, (7, 50)).astype(np.float32)
    gold = make_gold([sorted(generator.permutation(50)[:6].tolist()) for _ in range(7)], 50)
    whole = rank_labels(scores, gold, 3).gold_ranks
    monkeypatch.setattr("plant_dist.metrics.order._COMPARISONS", 120)
    np.testing.assert_array_equal(rank_labels(scores, gold, 3).gold_ranks, whole)


NAPKIN = {
    "p": oracle.precision_at_k,
    "r": oracle.recall_at_k,
    "ndcg": oracle.ndcg_at_k,
}
NAPKIN_PROPENSITY = {
    "psp": oracle.psprecision_at_k,
    "psr": oracle.psrecall_at_k,
    "psndcg": oracle.psndcg_at_k,
}


@given(problems(), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_equal_to_napkinxc(problem: tuple[np.ndarray, list[list[int]]], seed: int) -> None:
    """With `empty_gold: zero`, which is napkinXC's rule; k reaches beyond gold and labels."""
    scores, lists = problem
    labels, ks = scores.shape[1], (1, 2, 5, 11)
    frequency = np.random.default_rng(seed).integers(0, 50, labels)
    inverse = inverse_propensities(frequency, 100, 0.55, 1.5)
    gold = make_gold(lists, labels)
    sums = RankingSums(ks, inverse, empty_gold="zero")
    sums.add(gold, rank_labels(scores, gold, 2).gold_ranks)
    ours, predicted = sums.results(), [sorted_labels(row) for row in scores]
    for name, measure in NAPKIN.items():
        theirs = measure(lists, predicted, k=max(ks))
        assert [ours[f"{name}@{k}"] for k in ks] == pytest.approx([theirs[k - 1] for k in ks])
    if gold.ids.size:
        for name, measure in NAPKIN_PROPENSITY.items():
            theirs = measure(lists, predicted, inverse, k=max(ks))
            assert [ours[f"{name}@{k}"] for k in ks] == pytest.approx([theirs[k - 1] for k in ks])


def test_inverse_propensities_equal_napkinxc() -> None:
    train = [[0, 1], [1], [1, 2], [1, 3], []]
    for a, b in ((0.55, 1.5), (0.6, 2.6), (0.5, 0.4)):
        theirs = oracle.Jain_et_al_inverse_propensity(train, A=a, B=b)
        ours = inverse_propensities(np.array([1, 4, 1, 1]), 5, a, b)
        assert ours == pytest.approx([theirs[label] for label in range(4)], rel=1e-12)


def test_a_page_worked_by_hand() -> None:
    """Three documents; ranks of gold 1 and 3 of two; 2 of one and one missed; no gold."""
    gold = make_gold([[0, 1], [2, 3], []], labels=4)
    sums = RankingSums((1, 3), np.array([1.0, 2.0, 3.0, 4.0]))
    sums.add(gold, np.array([1, 3, 2, 0], np.int32))
    results = sums.results()
    discount = [1 / math.log2(place + 1) for place in (1, 2, 3)]
    ideal = discount[0] + discount[1]
    assert results["p@1"] == pytest.approx(1 / 2)
    assert results["p@3"] == pytest.approx((2 / 3 + 1 / 3) / 2)
    assert results["r@3"] == pytest.approx((1 + 1 / 2) / 2)
    assert results["ndcg@3"] == pytest.approx((discount[0] + discount[2] + discount[1]) / ideal / 2)
    assert results["map"] == pytest.approx(((1 + 2 / 3) / 2 + (1 / 2) / 2) / 2)
    assert results["r_precision"] == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert results["psp@1"] == pytest.approx(1 / (2 + 4))
    assert results["psp@3"] == pytest.approx((1 + 2 + 3) / (1 + 2 + 3 + 4))


def test_documents_without_gold_are_skipped_or_count_as_zero() -> None:
    gold = make_gold([[0], []], labels=2)
    values = {}
    for rule in ("skip", "zero"):
        sums = RankingSums((1,), np.ones(2), empty_gold=rule)
        sums.add(gold, np.array([1], np.int32))
        values[rule] = sums.results()
    for name in ("p@1", "r@1", "ndcg@1", "map", "r_precision"):
        assert (values["skip"][name], values["zero"][name]) == (1.0, 0.5)
    assert values["skip"]["psp@1"] == values["zero"]["psp@1"] == 1.0


def test_no_document_at_all_is_not_a_number() -> None:
    assert all(math.isnan(value) for value in RankingSums((1,), np.ones(2)).results().values())


@pytest.mark.parametrize(
    ("scores", "label_ids", "message"),
    [
        (np.zeros((2, 3)), None, "shape"),
        (np.array([[0.0, np.nan, 1.0]]), None, "NaN"),
        (np.zeros((1, 3)), np.array([[2, 0, 2]]), "label 2 twice"),
        (np.zeros((1, 3)), np.array([[2, 0]]), "each score needs its label"),
    ],
)
def test_unusable_scores_are_refused(
    scores: np.ndarray, label_ids: np.ndarray | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        rank_labels(scores, make_gold([[0]], 3), 2, label_ids)


@pytest.mark.parametrize(
    ("offsets", "ids", "message"),
    [
        ([0, 1], [0, 1], "offsets run over"),
        ([0, 2, 1, 2], [0, 1], "offsets run over"),
        ([0, 1, 2], [0, 3], "row 1 holds label 3"),
        ([0, 1, 3], [1, 2, 2], "row 1 holds label 2 twice"),
    ],
)
def test_unusable_gold_is_refused(offsets: list[int], ids: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Gold.checked(offsets, ids, 3)
