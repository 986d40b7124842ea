"""Held-out evaluation: a hand-worked list, scikit-learn's nDCG, chance as chance, bands."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from plant_dist.mig.graded import GradedLists, Ints, ReservedPairs, graded_lists, hold_out
from plant_dist.mig.heldout import (
    HeldOutScores,
    by_chance,
    by_token_frequency,
    evaluate_held_out,
    report_by_band,
)
from plant_dist.mig.lists import GainTable, offsets_of

VOCABULARY, LABELS = 400, 30


@pytest.fixture(scope="module")
def lists() -> GradedLists:
    generator = np.random.default_rng(0)
    counts = generator.integers(5, 40, LABELS)
    tokens = [generator.permutation(VOCABULARY)[:count] for count in counts]
    gains = np.concatenate([np.sort(generator.random(count))[::-1] for count in counts])
    table = GainTable(
        offsets_of(counts),
        np.concatenate(tokens).astype(np.int32),
        gains.astype(np.float32),
        gains.astype(np.float32),
        np.ones(VOCABULARY, dtype=np.int64),
        np.ones(LABELS, dtype=np.int64),
        np.asarray(VOCABULARY),
    )
    return hold_out(graded_lists(table, 4), 0.3, seed=1)


def fixed_scores(seed: int):
    table = np.random.default_rng(seed).random((LABELS, VOCABULARY))
    return lambda labels, tokens: table[labels][:, tokens], table


def expected_ndcg(lists: GradedLists, label: int, scores: np.ndarray, k: int) -> float:
    """scikit-learn's nDCG@k over the label's reserved tokens, less what it was trained on."""
    entries = slice(lists.offsets[label], lists.offsets[label + 1])
    relevance = np.zeros(VOCABULARY)
    held = lists.held_out[entries]
    relevance[lists.tokens[entries][held]] = 2.0 ** lists.grades[entries][held] - 1
    candidate = lists.reserved.holds(np.array(label), np.arange(VOCABULARY))
    candidate[lists.tokens[entries][~held]] = False
    return float(ndcg_score(relevance[candidate][None], scores[candidate][None], k=k))


def test_ndcg_equals_scikit_learn_over_reserved_tokens(lists: GradedLists) -> None:
    score, table = fixed_scores(2)
    documents = np.ones(VOCABULARY, dtype=np.int64)
    found = evaluate_held_out(score, lists, documents, (3, 16), seed=0, labels_per_batch=7)
    assert found.labels.tolist() == lists.labels_held_out().tolist()
    assert len(found.labels) > 20
    for row, label in enumerate(found.labels):
        for column, k in enumerate((3, 16)):
            expected = expected_ndcg(lists, int(label), table[label], k)
            assert found.ndcg[row, column] == pytest.approx(expected, abs=1e-12)


def test_hand_worked_label() -> None:
    # Token 0 (grade 2) and 1 (grade 1) are held out; scores put token 5 between them.
    lists = GradedLists(
        np.array([0, 3]),
        np.array([0, 1, 2], dtype=np.int32),
        np.array([2, 1, 1], dtype=np.uint8),
        np.array([True, True, False]),
        ReservedPairs(1.0, 0),
    )

    def score(labels: Ints, tokens: Ints) -> np.ndarray:
        by_token = np.array([9.0, 7.0, 10.0, 0.0, 0.0, 8.0])
        return by_token[tokens][None]

    found = evaluate_held_out(score, lists, np.ones(6, dtype=np.int64), (1, 2, 3), seed=0)
    # Gains 3 and 1; token 2 was trained on, so it is no candidate and hides nothing.
    second, third = 1 / math.log2(3), 1 / math.log2(4)
    assert found.ndcg[0] == pytest.approx([1.0, 3 / (3 + second), (3 + third) / (3 + second)])


def test_a_perfect_ranker_scores_one_and_its_opposite_zero(lists: GradedLists) -> None:
    relevance = np.zeros((LABELS, VOCABULARY))
    owner = np.repeat(np.arange(LABELS), np.diff(lists.offsets))
    relevance[owner[lists.held_out], lists.tokens[lists.held_out]] = lists.grades[lists.held_out]
    documents = np.ones(VOCABULARY, dtype=np.int64)
    for sign, expected in ((1.0, 1.0), (-1.0, 0.0)):
        found = evaluate_held_out(
            lambda labels, tokens, sign=sign: sign * relevance[labels][:, tokens],
            lists, documents, (5,), seed=0,
        )  # fmt: skip
        assert found.ndcg == pytest.approx(np.full_like(found.ndcg, expected), abs=1e-12)


def test_equal_scores_fall_by_chance_not_by_token_id(lists: GradedLists) -> None:
    documents = np.ones(VOCABULARY, dtype=np.int64)
    constant = by_token_frequency(documents)
    tied = [
        evaluate_held_out(constant, lists, documents, (16,), seed).ndcg.mean() for seed in range(20)
    ]
    chance = [
        evaluate_held_out(by_chance(seed), lists, documents, (16,), 0).ndcg.mean()
        for seed in range(20)
    ]
    assert np.mean(tied) == pytest.approx(np.mean(chance), abs=0.02)


def test_shares_of_labels_give_what_all_labels_give(lists: GradedLists) -> None:
    score, _ = fixed_scores(3)
    documents = np.ones(VOCABULARY, dtype=np.int64)
    whole = evaluate_held_out(score, lists, documents, (8,), seed=0, candidates=50)
    parts = [
        evaluate_held_out(score, lists, documents, (8,), 0, labels=share, candidates=50)
        for share in (np.arange(0, 15), np.arange(15, LABELS), np.arange(0))
    ]
    np.testing.assert_array_equal(np.concatenate([part.ndcg for part in parts]), whole.ndcg)
    everything = evaluate_held_out(score, lists, documents, (8,), seed=0, candidates=None)
    assert (whole.ndcg >= everything.ndcg - 1e-12).all(), "fewer rivals never hurt"
    assert whole.ndcg.mean() > everything.ndcg.mean() + 0.1


def test_report_averages_inside_bands() -> None:
    scores = HeldOutScores(np.array([0, 2, 3]), np.array([[0.2], [0.4], [0.9]]), (5,))
    report = report_by_band(scores, np.array([1, 7, 5, 101]))
    assert report == {
        "all": {"labels": 3, "ndcg@5": pytest.approx(0.5)},
        "1-5": {"labels": 2, "ndcg@5": pytest.approx(0.3)},
        ">100": {"labels": 1, "ndcg@5": pytest.approx(0.9)},
    }
