"""Plans: every row once, whatever the world; budgets; seeds; resuming in mid-epoch."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.errors import ConfigError

CUT = Segmentation(16, 2, SpecialTokens((2,), (3,), 0))
LENGTHS = st.lists(st.integers(0, 60), max_size=50).map(lambda some: np.array(some, np.int64))
SIZES = st.one_of(
    st.fixed_dictionaries({"documents_per_batch": st.integers(1, 9)}),
    st.fixed_dictionaries({"tokens_per_batch": st.integers(1, 300)}),
)


@settings(deadline=None, max_examples=150)
@given(
    lengths=LENGTHS, size=SIZES, world=st.integers(1, 5), bucket=st.integers(1, 4),
    shuffle=st.booleans(), epoch=st.integers(0, 2),
)  # fmt: skip
def test_every_row_comes_once_per_epoch_over_all_ranks(
    lengths, size, world, bucket, shuffle, epoch
):
    samplers = [
        BatchSampler(lengths, CUT, **size, bucket_batches=bucket, seed=1, rank=rank, world=world,
                     shuffle=shuffle)
        for rank in range(world)
    ]  # fmt: skip
    shares = [list(sampler.batches(epoch)) for sampler in samplers]
    assert {len(one) for one in shares} == {samplers[0].count(epoch)}
    rows: Counter[int] = Counter()
    for step in zip(*shares, strict=True):
        assert all(len(share.rows) for share in step)  # no rank sits a step out
        total = sum(float(share.weights.sum()) for share in step)
        assert {share.global_weight for share in step} == {total}
        for share in step:
            assert share.weights.dtype == np.float32
            rows.update(share.rows[share.weights > 0].tolist())
    assert rows == Counter(range(len(lengths)))


@settings(deadline=None, max_examples=100)
@given(lengths=LENGTHS, budget=st.integers(1, 400), bucket=st.integers(1, 3))
def test_padded_tokens_stay_in_the_budget_and_batches_are_full(lengths, budget, bucket):
    sampler = BatchSampler(lengths, CUT, tokens_per_batch=budget, bucket_batches=bucket)
    counts, widths = CUT.counts(lengths), CUT.widths(lengths)
    for rows in sampler.plan():
        cost = len(rows) * counts[rows].max() * widths[rows].max()
        assert cost <= budget or len(rows) == 1
    # In the sorted order no batch could have taken the next document too.
    ordered = BatchSampler(lengths, CUT, tokens_per_batch=budget, shuffle=False).plan()[::-1]
    for rows, following in pairwise(ordered):
        taken = np.append(rows, following[0])
        assert len(taken) * counts[taken].max() * widths[taken].max() > budget


def test_fixed_batches_are_full_but_for_the_last_of_a_bucket():
    sampler = BatchSampler(np.arange(50), CUT, documents_per_batch=8, bucket_batches=3)
    assert sorted(len(rows) for rows in sampler.plan()) == [2, 8, 8, 8, 8, 8, 8]


@settings(deadline=None, max_examples=30)
@given(start=st.integers(0, 12), world=st.integers(1, 3))
def test_resuming_gives_the_rest_of_the_epoch(start, world):
    options = {"documents_per_batch": 4, "seed": 5, "rank": world - 1, "world": world}
    lengths = np.arange(45) % 17
    whole = [share.rows.tolist() for share in BatchSampler(lengths, CUT, **options).batches(3)]
    rest = BatchSampler(lengths, CUT, **options).batches(3, start)
    assert len(rest) == len(whole[start:])
    assert [share.rows.tolist() for share in rest] == whole[start:]


def test_a_seed_and_an_epoch_decide_and_nothing_else():
    def rows(seed: int, epoch: int) -> list[list[int]]:
        sampler = BatchSampler(np.arange(40) % 9, CUT, documents_per_batch=4, seed=seed)
        sampler.plan(epoch + 1)  # what was planned before must not matter
        np.random.default_rng().random()
        return [one.tolist() for one in sampler.plan(epoch)]

    assert rows(0, 0) == rows(0, 0)
    assert len({str(rows(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_buckets_save_padding_and_still_mix_documents():
    lengths = np.random.default_rng(0).integers(1, 60, 2000)

    def padding(bucket: int) -> float:
        plan = BatchSampler(lengths, CUT, documents_per_batch=16, bucket_batches=bucket).plan()
        padded = CUT.padded(lengths)
        return sum(len(rows) * padded[rows].max() for rows in plan) / padded.sum()

    assert padding(1) > 1.7
    assert padding(50) < 1.1
    plans = [BatchSampler(lengths, CUT, documents_per_batch=16, seed=1).plan(e) for e in (0, 1)]
    pairs = [{pair for rows in plan for pair in permutations(rows.tolist(), 2)} for plan in plans]
    assert len(pairs[0] & pairs[1]) < 0.1 * len(pairs[0])


def test_a_rank_without_a_document_reads_a_filler():
    sampler = BatchSampler(np.array([3, 3, 3]), CUT, documents_per_batch=2, rank=1, world=2)
    shares = {share.global_weight: share for share in sampler.batches()}
    assert shares[2.0].weights.tolist() == [1.0]
    assert shares[1.0].weights.tolist() == [0.0]
    assert len(shares[1.0].rows) == 1


def test_evaluation_reads_the_longest_first_in_every_epoch_alike():
    lengths = np.array([5, 40, 1, 30, 2])
    sampler = BatchSampler(lengths, CUT, documents_per_batch=2, shuffle=False)
    assert [sorted(rows.tolist()) for rows in sampler.plan(0)] == [[1], [0, 3], [2, 4]]
    assert [rows.tolist() for rows in sampler.plan(7)] == [r.tolist() for r in sampler.plan(0)]


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="documents_per_batch or tokens_per_batch"):
        BatchSampler(np.arange(3), CUT)
    with pytest.raises(ConfigError, match="rank 2 is outside a world of 2"):
        BatchSampler(np.arange(3), CUT, documents_per_batch=1, rank=2, world=2)
