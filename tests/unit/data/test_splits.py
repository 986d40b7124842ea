"""Splits: the stated algorithm against a naive form of it, groups, seeds, nested subsets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import DataConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.splits import (
    TEST,
    TRAIN,
    UNSAID,
    VALIDATION,
    assign_splits,
    draw_subset,
    groups_across_splits,
    named_split,
    stratify,
)
from plant_dist.errors import ConfigError

LABELS = st.lists(st.sets(st.integers(0, 6), max_size=4), min_size=1, max_size=40)


def naive_stratify(rows, units, shares, order):
    """Algorithm 1 of Sechidis et al., dense and slow: a full search at every step."""
    label_count = 1 + max((label for row in rows for label in row), default=-1)
    count = np.zeros((max(units) + 1, label_count))
    for row, unit in zip(rows, units, strict=True):
        count[unit, list(row)] += 1
    sizes = np.bincount(units)
    usable = np.flatnonzero(shares)
    wanted = [count.sum(axis=0) * share for share in shares]
    wanted_all = [len(rows) * share for share in shares]
    placed = {}

    def place(unit, key):
        split = max(usable, key=lambda one: (key(one), wanted_all[one], -one))
        placed[unit] = split
        wanted[split] = wanted[split] - count[unit]
        wanted_all[split] -= sizes[unit]

    while True:
        left = {
            label: [unit for unit in order if unit not in placed and count[unit, label]]
            for label in range(label_count)
        }
        left = {label: units for label, units in left.items() if units}
        if not left:
            break
        rarest = min(left, key=lambda label: (len(left[label]), label))
        for unit in left[rarest]:
            place(unit, lambda split, label=rarest: wanted[split][label])
    for unit in order:
        if unit not in placed:
            place(unit, lambda split: wanted_all[split])
    return [placed[unit] for unit in range(len(sizes))]


@settings(deadline=None, max_examples=60)
@given(
    rows=LABELS,
    seed=st.integers(0, 5),
    shares=st.sampled_from([(0.7, 0.1, 0.2), (0.5, 0.25, 0.25), (0.8, 0.0, 0.2)]),
    spread=st.integers(1, 3),
)
def test_stratification_is_the_published_algorithm(rows, seed, shares, spread):
    units = np.unique(np.arange(len(rows)) * 7 % (1 + len(rows) // spread), return_inverse=True)[1]
    shares = np.array(shares)
    order = np.random.default_rng(seed).permutation(int(units.max()) + 1)
    found = stratify(
        csr_from_lists([sorted(row) for row in rows]), units, shares, np.random.default_rng(seed)
    )
    assert found.tolist() == naive_stratify(rows, units, shares, order.tolist())


def test_stratification_gives_rare_labels_their_share_where_chance_does_not():
    random = np.random.default_rng(0)
    rows = [[0] + ([1 + at // 10] if at < 200 else []) for at in random.permutation(1000)]
    labels, groups = csr_from_lists(rows), np.arange(1000, dtype=np.uint64)
    given = np.full(1000, UNSAID, np.int8)
    misses = {}
    for how in ("stratified", "random"):
        data = DataConfig(split=how, validation_fraction=0.1, test_fraction=0.2)
        splits = assign_splits(data, given, groups, labels, seed=3)
        table = np.zeros((21, 3))
        np.add.at(table, (labels.values, splits[labels.owners()]), 1)
        misses[how] = np.abs(table[1:] - [7, 1, 2]).sum()
        assert np.bincount(splits).tolist() == [700, 100, 200]
    assert misses["stratified"] == 0
    assert misses["random"] > 20


@settings(deadline=None, max_examples=50)
@given(
    groups=st.lists(st.integers(0, 12), min_size=1, max_size=60),
    how=st.sampled_from(["random", "stratified"]),
    seed=st.integers(0, 3),
)
def test_a_group_never_crosses_and_a_seed_decides(groups, how, seed):
    labels = csr_from_lists([[at % 5] for at in range(len(groups))])
    keys, given = np.array(groups, np.uint64), np.full(len(groups), UNSAID, np.int8)
    data = DataConfig(split=how)
    splits = assign_splits(data, given, keys, labels, seed)
    assert groups_across_splits(splits, keys) == 0
    assert set(splits.tolist()) <= {TRAIN, VALIDATION, TEST}
    assert np.array_equal(splits, assign_splits(data, given, keys, labels, seed))


def test_another_seed_gives_another_split():
    labels, keys = csr_from_lists([[0]] * 50), np.arange(50, dtype=np.uint64)
    given = np.full(50, UNSAID, np.int8)
    one, two = (assign_splits(DataConfig(split="random"), given, keys, labels, s) for s in (0, 1))
    assert np.bincount(one).tolist() == np.bincount(two).tolist() == [35, 5, 10]
    assert not np.array_equal(one, two)


def test_the_corpus_own_split_is_kept_and_lends_validation_only_where_there_is_none():
    keys = np.array([0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9], np.uint64)
    labels = csr_from_lists([[0]] * 12)
    whole = np.array([TRAIN] * 8 + [VALIDATION] * 2 + [TEST] * 2, np.int8)
    assert assign_splits(DataConfig(), whole, keys, labels, 0).tolist() == whole.tolist()
    lacking = np.array([TRAIN] * 10 + [TEST] * 2, np.int8)
    found = assign_splits(DataConfig(validation_fraction=0.3), lacking, keys, labels, 0)
    assert (found[10:] == TEST).all()
    assert groups_across_splits(found, keys) == 0
    assert len(np.unique(keys[found == VALIDATION])) == 3  # of nine groups in training
    none = assign_splits(DataConfig(validation_fraction=0.0), lacking, keys, labels, 0)
    assert none.tolist() == lacking.tolist()


def test_groups_that_cross_a_given_split_are_counted():
    keys = np.array([5, 5, 6, 6, 7], np.uint64)
    splits = np.array([TRAIN, TEST, TRAIN, TRAIN, TEST], np.int8)
    assert groups_across_splits(splits, keys) == 1


@settings(deadline=None)
@given(small=st.integers(1, 50), more=st.integers(0, 50), seed=st.integers(0, 9))
def test_a_smaller_training_subset_is_inside_a_larger_one(small, more, seed):
    rows = np.arange(10, 110)
    inner, outer = draw_subset(rows, small, seed), draw_subset(rows, small + more, seed)
    assert len(inner) == small
    assert set(inner.tolist()) <= set(outer.tolist()) <= set(rows.tolist())


def test_words_of_other_corpora_mean_our_splits():
    words = ["train", "VAL", "dev", "validation", "valid", " Test ", "tst", "holdout"]
    meant = ["train", *["validation"] * 4, "test", "test", None]
    assert [named_split(word) for word in words] == meant


def test_fractions_that_leave_no_training_are_refused():
    data = DataConfig(split="random", validation_fraction=0.5, test_fraction=0.5)
    with pytest.raises(ConfigError, match="leave nothing for training"):
        assign_splits(
            data, np.zeros(4, np.int8), np.arange(4, dtype=np.uint64), csr_from_lists([[]] * 4), 0
        )
