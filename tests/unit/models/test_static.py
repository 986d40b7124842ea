"""The static branch against a search by hand through every document, label and position."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plant_dist.errors import ArtifactError
from plant_dist.models.attention import TopkCarry, softmax_kept
from plant_dist.models.static import StaticGains

V, L = 9, 6


def made(rows: list[list[tuple[int, float]]], vocabulary: int = V) -> StaticGains:
    """Gains from a list of (token, gain) a label."""
    pairs = [pair for row in rows for pair in row]
    offsets = torch.tensor([0, *[len(row) for row in rows]]).cumsum(0)
    gains = StaticGains(len(rows), vocabulary, len(pairs))
    tokens = torch.tensor([token for token, _ in pairs], dtype=torch.int32)
    gains.fill(offsets, tokens, torch.tensor([gain for _, gain in pairs]))
    return gains


ROW = st.lists(
    st.tuples(st.integers(0, V - 1), st.sampled_from([0.5, 0.25, 0.125, 1.0])),
    max_size=6,
    unique_by=lambda pair: pair[0],
).map(lambda row: sorted(row, key=lambda pair: -pair[1]))


def by_hand(
    rows: list[list[tuple[int, float]]], ids_T: Tensor, keep_T: Tensor, label: int, k: int | None
) -> list[tuple[float, int]]:
    """(gain, position) of the k best positions; earlier ones first among equal gains."""
    stored = dict(rows[label])
    found = [
        (stored[int(token)], t)
        for t, token in enumerate(ids_T)
        if keep_T[t] and int(token) in stored
    ]
    return sorted(found, key=lambda one: (-one[0], one[1]))[:k]


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(ROW, min_size=L, max_size=L),
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 10),
    k=st.sampled_from([None, 1, 2, 5]),
    start=st.integers(0, L - 1),
)
def test_block_and_rows_find_the_best_positions(
    rows: list[list[tuple[int, float]]], seed: int, tokens: int, k: int | None, start: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (3, tokens), generator=generator)
    keep = torch.rand(3, tokens, generator=generator) < 0.7
    keep[1] = False
    gains = made(rows)
    of_block = gains.block(ids, keep, start, L, k)
    chosen = torch.arange(start, L).expand(3, -1)
    of_rows = gains.rows(ids, keep, chosen.flip(1), k)
    for scores, positions, labels in ((*of_block, chosen), (*of_rows, chosen.flip(1))):
        for b in range(3):
            for column, label in enumerate(labels[b].tolist()):
                expected = by_hand(rows, ids[b], keep[b], label, k)
                real = scores[b, column] > -math.inf
                assert real.sum() == len(expected)
                assert positions[b, column][real].tolist() == [place for _, place in expected]
                found = scores[b, column][real].exp()
                wanted = torch.tensor([gain for gain, _ in expected], dtype=torch.float64)
                torch.testing.assert_close(found, wanted)
                assert positions[b, column][~real].eq(0).all()


def test_softmax_of_the_scores_is_gains_normalised_by_hand() -> None:
    """A worked document: tokens 3 5 3 7, gains of the label 0.6 for 3 and 0.2 for 7."""
    gains = made([[(3, 0.6), (7, 0.2)], [(1, 0.9)]])
    ids, keep = torch.tensor([[3, 5, 3, 7]]), torch.ones(1, 4, dtype=torch.bool)
    scores, positions = gains.block(ids, keep, 0, 2, 3)
    weights = softmax_kept(scores)
    assert positions[0, 0].tolist() == [0, 2, 3]
    torch.testing.assert_close(weights[0, 0], torch.tensor([3 / 7, 3 / 7, 1 / 7]).double())
    assert weights[0, 1].tolist() == [0.0, 0.0, 0.0]


def test_dropped_tokens_change_the_result() -> None:
    gains = made([[(3, 0.6), (7, 0.2)]])
    ids = torch.tensor([[3, 7]])
    keep = torch.tensor([[False, True]])
    _, positions = gains.block(ids, keep, 0, 1, 1)
    assert positions.item() == 1
    _, positions = gains.block(ids, ~keep, 0, 1, 1)
    assert positions.item() == 0


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(ROW, min_size=L, max_size=L), seed=st.integers(0, 1000), k=st.integers(1, 4))
def test_segments_merge_to_the_whole_document(
    rows: list[list[tuple[int, float]]], seed: int, k: int
) -> None:
    ids = torch.randint(0, V, (2, 12), generator=torch.Generator().manual_seed(seed))
    keep, places = torch.ones(2, 12, dtype=torch.bool), torch.arange(12.0).expand(2, L, -1)
    gains = made(rows)
    carry = TopkCarry.start(torch.empty(2, L, dtype=torch.float64), k)
    for part in (slice(0, 5), slice(5, 6), slice(6, 12)):
        scores, positions = gains.block(ids[:, part], keep[:, part], 0, L, k)
        carry = carry.update(scores, places[..., part].gather(-1, positions).double())
    scores, positions = gains.block(ids, keep, 0, L, k)
    whole = (softmax_kept(scores) * places.gather(-1, positions)).sum(-1)
    torch.testing.assert_close(carry.result(), whole)


def test_state_dict_round_trip_and_reloading_forget_the_old_index() -> None:
    first = made([[(3, 0.6), (7, 0.2)], [(1, 0.9)]])
    second = made([[(2, 0.5)], [(4, 0.4), (5, 0.3)]])
    ids, keep = torch.tensor([[3, 1, 4]]), torch.ones(1, 3, dtype=torch.bool)
    before = second.block(ids, keep, 0, 2, 2)
    second.load_state_dict(first.state_dict())
    after, expected = second.block(ids, keep, 0, 2, 2), first.block(ids, keep, 0, 2, 2)
    assert after[0].equal(expected[0])
    assert not after[0].equal(before[0])
    assert set(first.state_dict()) == {"offsets", "tokens", "gains"}


@pytest.mark.parametrize("filled", [False, True])
def test_gains_of_nothing_give_no_position(filled: bool) -> None:
    gains = made([[], []]) if filled else StaticGains(2, V, 3)
    ids, keep = torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool)
    for scores, _ in (
        gains.block(ids, keep, 0, 2, 2),
        gains.rows(ids, keep, torch.tensor([[1, 0]]), None),
    ):
        assert (softmax_kept(scores) == 0).all()


def test_wrong_gains_are_refused_in_one_line() -> None:
    gains = StaticGains(2, V, 3)
    offsets, tokens = torch.tensor([0, 2, 3]), torch.tensor([1, 2, 3])
    falling = torch.tensor([0.5, 0.4, 0.9])
    gains.fill(offsets, tokens, falling)
    for found, broken in (
        ("made for", (offsets[:-1], tokens, falling)),
        ("made for", (offsets, tokens[:-1], falling)),
        ("token 9", (offsets, torch.tensor([1, 9, 3]), falling)),
        ("label 0 rise", (offsets, tokens, torch.tensor([0.4, 0.5, 0.9]))),
    ):
        with pytest.raises(ArtifactError, match=found) as error:
            gains.fill(*broken)
        assert "\n" not in str(error.value)
