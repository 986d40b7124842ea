"""Attention functions against brute force, one label at a time, and finite differences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plant_dist.models.attention import (
    DROPPED,
    SoftmaxCarry,
    TopkCarry,
    attend_all,
    first_slots,
    inattention,
    keep_largest,
    kept_dots,
    mask_scores,
    masked_softmax,
    softmax_kept,
)

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9))


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw_keep(seed: int, *shape: int) -> Tensor:
    """A random mask whose first document keeps nothing."""
    keep = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    keep[0] = False
    return keep


def brute_force(scores_BKT: Tensor, keep_BT: Tensor, k: int | None) -> Tensor:
    """Dense weights (B, K, T): softmax over the k best kept scores, picked by sorting."""
    weights = torch.zeros_like(scores_BKT)
    for b in range(scores_BKT.shape[0]):
        for label in range(scores_BKT.shape[1]):
            real = [t for t in range(scores_BKT.shape[2]) if keep_BT[b, t]]
            best = sorted(real, key=lambda t: -float(scores_BKT[b, label, t]))[:k]
            if best:
                weights[b, label, best] = scores_BKT[b, label, best].softmax(0)
    return weights


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), shape=SHAPES, k=st.sampled_from([None, 1, 2, 5, 30]))
def test_inattention_keeps_exactly_the_k_best_real_tokens(
    seed: int, shape: tuple[int, int, int], k: int | None
) -> None:
    scores, keep = draw(seed, *shape) - 5.0, draw_keep(seed, shape[0], shape[2])
    weights, positions = inattention(scores, keep, k)
    dense = torch.zeros_like(scores).scatter_add(-1, positions, weights)
    torch.testing.assert_close(dense, brute_force(scores, keep, k), rtol=1e-12, atol=1e-14)
    limit = shape[2] if k is None else k
    expected = keep.sum(1).clamp_max(limit)[:, None].expand(-1, shape[1])
    assert (weights > 0).sum(-1).equal(expected)


def test_negative_scores_beat_dropped_tokens() -> None:
    """The reference sets dropped scores to 0, which would win here."""
    scores = torch.tensor([[[-9.0, -1.0, -2.0, -3.0]]])
    keep = torch.tensor([[False, True, True, True]])
    weights, positions = inattention(scores, keep, 2)
    assert sorted(positions[0, 0].tolist()) == [1, 2]
    assert weights.sum() == 1


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_softmax_of_huge_scores_and_of_nothing_is_finite_with_its_gradient(scale: float) -> None:
    scores = (draw(0, 2, 3, 5) * scale).requires_grad_()
    keep = draw_keep(0, 2, 5)
    weights = masked_softmax(scores, keep)
    torch.testing.assert_close(weights, brute_force(scores.detach(), keep, None))
    (gradient,) = torch.autograd.grad((weights * draw(1, 2, 3, 5)).sum(), scores)
    assert gradient.isfinite().all()
    assert gradient[0].abs().max() == 0
    assert weights.masked_select(~keep[:, None]).abs().max() == 0


def test_softmax_of_no_slot_is_empty() -> None:
    assert softmax_kept(torch.zeros(2, 3, 0)).shape == (2, 3, 0)


def test_the_mask_changes_the_softmax() -> None:
    scores = draw(1, 1, 2, 4)
    every = torch.ones(1, 4, dtype=torch.bool)
    three = every.clone()
    three[0, 1] = False
    difference = masked_softmax(scores, every) - masked_softmax(scores, three)
    assert difference.abs().min() > 1e-6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), shape=SHAPES, width=st.integers(1, 5), shared=st.booleans())
def test_full_attention_equals_the_written_out_form(
    seed: int, shape: tuple[int, int, int], width: int, shared: bool
) -> None:
    documents, labels, tokens = shape
    query = draw(seed, 1 if shared else documents, labels, width).requires_grad_()
    hidden = draw(seed + 1, documents, tokens, width).requires_grad_()
    keep = draw_keep(seed, documents, tokens)
    scores = query @ hidden.transpose(1, 2) / width**0.5
    expected = masked_softmax(scores, keep) @ hidden
    found = attend_all(query, hidden, keep)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    probe = draw(seed + 2, *found.shape)
    for one, other in zip(
        torch.autograd.grad((found * probe).sum(), (query, hidden)),
        torch.autograd.grad((expected * probe).sum(), (query, hidden)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    shape=SHAPES,
    vectors=st.integers(1, 12),
    width=st.integers(1, 5),
    shared=st.booleans(),
)
def test_kept_dots_equals_gathering_with_gradients(
    seed: int, shape: tuple[int, int, int], vectors: int, width: int, shared: bool
) -> None:
    rows = draw(seed, 1 if shared else shape[0], shape[1], width).requires_grad_()
    table = draw(seed + 1, vectors, width).requires_grad_()
    index = torch.randint(0, vectors, shape, generator=torch.Generator().manual_seed(seed))
    found = kept_dots(rows, table, index)
    expected = (rows[:, :, None] * table[index]).sum(-1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    probe = draw(seed + 2, *shape)
    for one, other in zip(
        torch.autograd.grad((found * probe).sum(), (rows, table)),
        torch.autograd.grad((expected * probe).sum(), (rows, table)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_kept_dots_passes_gradcheck() -> None:
    index = torch.tensor([[[0, 3], [1, 1]], [[2, 4], [4, 0]]])
    for rows in (draw(0, 1, 2, 3), draw(0, 2, 2, 3)):
        inputs = (rows.requires_grad_(), draw(1, 5, 3).requires_grad_())
        assert torch.autograd.gradcheck(lambda r, t: kept_dots(r, t, index), inputs)


def test_kept_dots_of_half_precision_are_summed_in_float32() -> None:
    rows, table = draw(0, 1, 2, 64).bfloat16(), draw(1, 5, 64).bfloat16()
    index = torch.tensor([[[0, 3], [1, 4]]])
    found = kept_dots(rows, table, index)
    expected = (rows[:, :, None].float() * table[index].float()).sum(-1)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@settings(max_examples=60, deadline=None)
@given(counts=st.lists(st.integers(0, 4), min_size=1, max_size=6), k=st.integers(1, 12))
def test_slots_are_dealt_in_order(counts: list[int], k: int) -> None:
    expected = [(i, c) for i, n in enumerate(counts) for c in range(n)][:k]
    item, copy, filled = first_slots(torch.tensor(counts), k)
    assert int(filled.sum()) == len(expected)
    pairs = list(zip(item.tolist(), copy.tolist(), strict=True))
    assert pairs == expected + [(0, 0)] * (k - len(expected))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    k=st.sampled_from([None, 1, 3, 50]),
)
def test_carries_equal_attention_over_the_joined_segments(
    seed: int, lengths: list[int], k: int | None
) -> None:
    tokens = sum(lengths)
    scores = (3 * draw(seed, 2, 3, tokens)).requires_grad_()
    values = draw(seed + 1, 2, 3, tokens).requires_grad_()
    masked = mask_scores(scores, draw_keep(seed, 2, tokens))
    like = scores.new_empty(2, 3)
    carry = SoftmaxCarry.start(like) if k is None else TopkCarry.start(like, k)
    for part, value in zip(masked.split(lengths, -1), values.split(lengths, -1), strict=True):
        best, where = keep_largest(part, k)
        carry = carry.update(best, value.gather(-1, where))
    best, where = keep_largest(masked, k)
    expected = (softmax_kept(best) * values.gather(-1, where)).sum(-1)
    torch.testing.assert_close(carry.result(), expected, rtol=1e-12, atol=1e-12)
    probe = draw(seed + 2, 2, 3)
    for one, other in zip(
        torch.autograd.grad((carry.result() * probe).sum(), (scores, values), retain_graph=True),
        torch.autograd.grad((expected * probe).sum(), (scores, values)),
        strict=True,
    ):
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_carries_in_float32_stay_within_1e5_over_many_segments() -> None:
    scores, values = (30 * draw(0, 2, 20, 4096)).float(), draw(1, 2, 20, 4096).float()
    carry = SoftmaxCarry.start(torch.empty(2, 20))
    for part, value in zip(scores.split(64, -1), values.split(64, -1), strict=True):
        carry = carry.update(part, value)
    expected = (scores.softmax(-1) * values).sum(-1)
    torch.testing.assert_close(carry.result(), expected, rtol=1e-5, atol=1e-5)


def test_equal_scores_keep_the_earlier_tokens() -> None:
    carry = TopkCarry.start(torch.empty(1, 1), 2)
    for value in (1.0, 2.0, 3.0):
        carry = carry.update(torch.zeros(1, 1, 1), torch.full((1, 1, 1), value))
    assert carry.values.tolist() == [[[1.0, 2.0]]]
    carry = carry.update(torch.full((1, 1, 1), DROPPED), torch.full((1, 1, 1), 9.0))
    assert carry.result().item() == 1.5
