from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from plant_dist.data.words import words_of
from plant_dist.evidence.records import AttendedToken
from plant_dist.evidence.tokens import best_tokens, best_words, touching


def test_the_most_attended_tokens_of_a_document_in_two_segments() -> None:
    # [CLS] a b [SEP] | [CLS] c pad pad: the document's tokens are places 1, 2 and 5.
    keep = torch.tensor([[[0, 1, 1, 0], [0, 1, 0, 0]]], dtype=torch.bool)
    weights = torch.tensor([[[0.9, 0.2, 0.3, 0.0, 0.0, 0.5, 0.0, 0.0], [0.0] * 8]])
    spans = [[(0, 4), (5, 7), (8, 9)]]
    [[first, second]] = best_tokens(weights, keep, spans, 2)
    assert first == [AttendedToken(8, 9, 0.5), AttendedToken(5, 7, 0.3)]
    assert second == []  # a weight of 0 is no evidence
    [[first, _]] = best_tokens(weights, keep, spans, 99)
    # The special token at place 0 is attended most and has no characters.
    assert [token.start for token in first] == [8, 5, 0]


def test_the_pieces_of_a_word_count_together() -> None:
    text = "No fiebre alta"
    spans = [(0, 2), (3, 5), (5, 9), (10, 14)]
    weights = torch.tensor([[0.375, 0.25, 0.25, 0.125], [0.5, -1.0, 0.5, 0.0]])
    [first, second] = best_words(weights, *words_of(text, spans), 2)
    assert first == [AttendedToken(3, 9, 0.5), AttendedToken(0, 2, 0.375)]
    # What a piece speaks against takes from what another speaks for.
    assert second == [AttendedToken(0, 2, 0.5)]


def test_the_pieces_of_a_word_are_joined_and_their_weights_added() -> None:
    tokens = [
        AttendedToken(10, 13, 0.25), AttendedToken(0, 4, 0.5), AttendedToken(4, 6, 0.125),
        AttendedToken(7, 9, 0.125), AttendedToken(20, 20, 0.9),
    ]  # fmt: skip
    assert touching(tokens) == [
        AttendedToken(0, 6, 0.625), AttendedToken(10, 13, 0.25), AttendedToken(7, 9, 0.125)
    ]  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5), st.integers(1, 9))))
def test_joined_runs_cover_the_same_characters_and_do_not_touch(
    drawn: list[tuple[int, int, int]],
) -> None:
    tokens = [AttendedToken(start, start + size, float(w)) for start, size, w in drawn]
    runs = touching(tokens)
    covered = {place for token in tokens for place in range(token.start, token.end)}
    assert sorted(place for run in runs for place in range(run.start, run.end)) == sorted(covered)
    assert sum(run.weight for run in runs) == sum(token.weight for token in tokens)
    in_order = sorted(runs)
    assert all(a.end < b.start for a, b in pairwise(in_order))
