"""Graded lists, the hold-out and drawn lists: hand-worked grades, exclusions, known shares."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import RankConfig
from plant_dist.errors import DataError
from plant_dist.mig.graded import (
    GradedLists,
    ListSampler,
    Membership,
    ReservedPairs,
    graded_lists,
    hold_out,
    padded_entries,
)
from plant_dist.mig.lists import GainTable, offsets_of

VOCABULARY = 200


def table_of(gains: list[list[float]], seed: int = 0) -> GainTable:
    """A table with these falling gains by label, over tokens drawn without repetition."""
    generator = np.random.default_rng(seed)
    flat = np.array([gain for row in gains for gain in row], dtype=np.float32)
    tokens = [generator.permutation(VOCABULARY)[: len(row)] for row in gains]
    return GainTable(
        offsets=offsets_of([len(row) for row in gains]),
        tokens=np.concatenate(tokens).astype(np.int32),
        gains=flat,
        information=flat,
        token_documents=np.arange(1, VOCABULARY + 1),
        label_documents=np.ones(len(gains), dtype=np.int64),
        documents=np.asarray(VOCABULARY),
    )


def falling(count: int) -> list[float]:
    return np.linspace(1.0, 0.1, count).tolist()


def test_grades_are_quantiles_of_ranks() -> None:
    lists = graded_lists(table_of([falling(8), falling(1), [], falling(3)]), grades=4)
    assert lists.grades.tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 4, 4, 3, 2]


def test_equal_gains_share_the_grade_of_the_first() -> None:
    lists = graded_lists(table_of([[0.9, 0.5, 0.5, 0.5], [0.5, 0.5]]), grades=4)
    assert lists.grades.tolist() == [4, 3, 3, 3, 4, 4]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(1, 16))
def test_grades_fall_from_the_highest_and_never_reach_zero(counts: list[int], highest: int) -> None:
    lists = graded_lists(table_of([falling(count) for count in counts]), highest)
    for start, stop in zip(lists.offsets[:-1], lists.offsets[1:], strict=True):
        grades = lists.grades[start:stop].astype(int)
        assert (np.diff(grades) <= 0).all()
        if len(grades):
            assert grades[0] == highest
            assert grades[-1] >= 1


def test_reserved_share_is_the_fraction_and_depends_on_the_seed() -> None:
    labels, tokens = np.arange(1000)[:, None], np.arange(1000)
    first = ReservedPairs(0.1, seed=0).holds(labels, tokens)
    # A million Bernoulli draws: standard deviation 0.0003; of a row or column, 0.0095.
    assert first.mean() == pytest.approx(0.1, abs=0.0015)
    assert first.mean(axis=0).std() == pytest.approx(0.0095, rel=0.15)
    assert first.mean(axis=1).std() == pytest.approx(0.0095, rel=0.15)
    other = ReservedPairs(0.1, seed=1).holds(labels, tokens)
    assert (first & other).mean() == pytest.approx(0.01, abs=0.0006)
    np.testing.assert_array_equal(first, ReservedPairs(0.1, seed=0).holds(labels, tokens))
    assert not ReservedPairs(0.0, 0).holds(labels, tokens).any()


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=1, max_size=8),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.integers(0, 5),
)
def test_held_out_tokens_are_the_reserved_ones_and_one_token_stays(
    counts: list[int], fraction: float, seed: int
) -> None:
    lists = graded_lists(table_of([falling(count) for count in counts]), 4)
    split = hold_out(lists, fraction, seed)
    np.testing.assert_array_equal(split.held_out, hold_out(lists, fraction, seed).held_out)
    for label, count in enumerate(counts):
        entries = slice(lists.offsets[label], lists.offsets[label + 1])
        reserved = split.reserved.holds(np.array(label), lists.tokens[entries])
        if count and reserved.all():
            reserved[0] = False
        np.testing.assert_array_equal(split.held_out[entries], reserved)
    assert split.labels_to_train().tolist() == np.flatnonzero(counts).tolist()
    held = [each.any() for each in np.split(split.held_out, split.offsets[1:-1])]
    assert split.labels_held_out().tolist() == np.flatnonzero(held).tolist()


def test_padded_rows_rebuild_the_lists() -> None:
    split = hold_out(graded_lists(table_of([falling(3), [], falling(5)]), 4), 0.5, 0)
    rows = padded_entries(split, np.array([2, 1, 0]))
    assert rows.tokens.shape == (3, 5)
    for row, label in enumerate([2, 1, 0]):
        entries = slice(split.offsets[label], split.offsets[label + 1])
        np.testing.assert_array_equal(rows.tokens[row][rows.there[row]], split.tokens[entries])
        np.testing.assert_array_equal(rows.grades[row][rows.there[row]], split.grades[entries])
        np.testing.assert_array_equal(rows.held_out[row][rows.there[row]], split.held_out[entries])
    member = Membership(rows, VOCABULARY).holds(np.arange(3)[:, None], np.arange(VOCABULARY))
    for row, label in enumerate([2, 1, 0]):
        entries = slice(split.offsets[label], split.offsets[label + 1])
        expected = np.isin(np.arange(VOCABULARY), split.tokens[entries])
        np.testing.assert_array_equal(member[row], expected)


def sampler_over(counts: list[int], config: RankConfig, fraction: float = 0.2) -> ListSampler:
    split = hold_out(graded_lists(table_of([falling(each) for each in counts]), 4), fraction, 3)
    return ListSampler(split, np.arange(1, VOCABULARY + 1), config)


def split_of(sampler: ListSampler) -> GradedLists:
    return sampler._lists


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 3),
)
def test_drawn_lists_hold_right_grades_and_no_reserved_pair(
    counts: list[int], graded: int, sampled: int, seed: int
) -> None:
    config = RankConfig(list_tokens=graded, sampled_tokens=sampled)
    sampler, labels = sampler_over(counts, config), np.arange(len(counts))
    drawn, lists = sampler.draw(labels, np.random.default_rng(seed)), split_of(sampler)
    assert drawn.tokens.shape == drawn.grades.shape == drawn.mask.shape
    assert drawn.tokens.shape == (len(counts), graded + sampled)
    for label in labels:
        entries = slice(lists.offsets[label], lists.offsets[label + 1])
        grade_of = dict(zip(lists.tokens[entries].tolist(), lists.grades[entries], strict=True))
        held = lists.tokens[entries][lists.held_out[entries]]
        there = drawn.mask[label]
        positives = drawn.tokens[label, :graded][there[:graded]].tolist()
        others = drawn.tokens[label, graded:][there[graded:]]
        assert len(positives) == min(graded, len(grade_of) - len(held))
        assert len(set(positives)) == len(positives)
        assert [grade_of[token] for token in positives] == (
            drawn.grades[label, :graded][there[:graded]].tolist()
        )
        assert not set(positives) & set(held.tolist())
        assert not set(others.tolist()) & set(grade_of)
        assert not lists.reserved.holds(np.array(label), others).any()
        assert not drawn.grades[label, graded:].any()
        assert not drawn.grades[label][~there].any()


def test_a_list_longer_than_the_draw_is_drawn_evenly() -> None:
    config = RankConfig(list_tokens=10, sampled_tokens=2)
    sampler = sampler_over([40], config, fraction=0.0)
    generator, drawn = np.random.default_rng(0), np.zeros(VOCABULARY)
    for _ in range(100):
        lists = sampler.draw(np.zeros(20, dtype=np.int64), generator)
        np.add.at(drawn, lists.tokens[:, :10], 1)
    share = drawn[split_of(sampler).tokens] / 2000
    # 2,000 draws of a quarter: standard deviation 0.0097.
    assert share == pytest.approx(np.full(40, 0.25), abs=0.045)


def test_half_of_the_others_follow_document_frequency() -> None:
    config = RankConfig(list_tokens=1, sampled_tokens=100)
    sampler = sampler_over([1], config, fraction=0.0)
    drawn = sampler.draw(np.zeros(4000, dtype=np.int64), np.random.default_rng(1))
    assert drawn.mask[:, 1:].all()
    uniform = np.bincount(drawn.tokens[:, 1:51].ravel(), minlength=VOCABULARY) / 200_000
    frequent = np.bincount(drawn.tokens[:, 51:].ravel(), minlength=VOCABULARY) / 200_000
    owned = split_of(sampler).tokens[0]
    weight = np.arange(1, VOCABULARY + 1, dtype=float)
    weight[owned] = 0.0
    even = (weight > 0) / (VOCABULARY - 1)
    assert uniform == pytest.approx(even, abs=0.0009)
    assert frequent == pytest.approx(weight / weight.sum(), abs=0.0012)


def test_tokens_never_seen_are_never_drawn() -> None:
    frequencies = np.zeros(VOCABULARY, dtype=np.int64)
    with pytest.raises(DataError, match="no token occurs"):
        ListSampler(graded_lists(table_of([[]]), 4), frequencies, RankConfig())
    frequencies[[7, 9]] = [1, 99]
    lists = graded_lists(table_of([[]]), 4)
    drawn = ListSampler(lists, frequencies, RankConfig()).draw(
        np.array([0]), np.random.default_rng(0)
    )
    assert set(drawn.tokens[drawn.mask].tolist()) == {7, 9}


def test_where_a_label_owns_every_seen_token_the_others_are_masked() -> None:
    lists = graded_lists(table_of([falling(3)]), 4)
    frequencies = np.zeros(VOCABULARY, dtype=np.int64)
    frequencies[lists.tokens] = 1
    config = RankConfig(list_tokens=4, sampled_tokens=5)
    drawn = ListSampler(lists, frequencies, config).draw(np.array([0]), np.random.default_rng(0))
    assert drawn.mask[0].tolist() == [True] * 3 + [False] * 6


def test_one_seed_draws_one_batch() -> None:
    sampler = sampler_over([30, 5], RankConfig())
    labels = np.array([1, 0])
    first, same = (sampler.draw(labels, np.random.default_rng(4)) for _ in range(2))
    other = sampler.draw(labels, np.random.default_rng(5))
    np.testing.assert_array_equal(first.tokens, same.tokens)
    assert (first.tokens != other.tokens).any()
