"""The named branch: windows worked out by hand, and what its attention covers."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from plant_dist.models.names import NameMatcher, windowed_sums


@given(tokens=st.integers(1, 9), window=st.integers(1, 12))
def test_windowed_sums_are_sums_over_slices(tokens: int, window: int) -> None:
    numbers = torch.randn(2, tokens, 3, dtype=torch.float64)
    sums = windowed_sums(numbers, window)
    for t in range(tokens):
        around = slice(max(t - (window - 1) // 2, 0), t + window // 2 + 1)
        torch.testing.assert_close(sums[:, t], numbers[:, around].sum(1))


def test_directions_leave_out_dropped_tokens_and_the_center() -> None:
    matcher = NameMatcher(2, window=2, scale=10.0, offset=0.5)
    matcher.center.copy_(torch.tensor([1.0, 1.0]))
    hidden = torch.tensor([[[1.0, 3.0], [2.0, 1.0], [9.0, 9.0], [1.0, 0.0]]])
    keep = torch.tensor([[True, True, False, True]])
    # Less the center: (0, 2), (1, 0), dropped, (0, -1); a window is a token and the next.
    expected = torch.tensor([[[1.0, 2.0], [1.0, 0.0], [0.0, 0.0], [0.0, -1.0]]])
    expected[0, 0] /= 5**0.5
    torch.testing.assert_close(matcher.directions(hidden, keep), expected)


def test_evidence_counts_what_is_above_the_offset() -> None:
    matcher = NameMatcher(2, window=2, scale=10.0, offset=0.5)
    with torch.no_grad():
        matcher.alone.copy_(torch.tensor([3.0, -0.2]))
    excess = matcher.excess(torch.tensor([0.5, 0.9, float("-inf")]))
    torch.testing.assert_close(matcher.evidence(excess), torch.tensor([0.0, 4.0, 0.0]))
    torch.testing.assert_close(matcher.evidence_alone(excess), torch.tensor([-2.0, 10.0, -2.0]))


def test_draws_are_even_over_labels_and_steps_and_need_no_place() -> None:
    matcher = NameMatcher(2, window=2, scale=1.0, offset=0.0)
    ids = torch.arange(20_000)
    found = []
    for _ in range(50):
        matcher.draws += 1
        found.append(matcher.drawn(ids, 0.1))
        assert torch.equal(matcher.drawn(ids.flip(0)[None], 0.1)[0].flip(0), found[-1])
    drawn = torch.stack(found).double()
    # Within five deviations of a fair coin, over labels, over steps, and of one with the next.
    assert abs(drawn.mean() - 0.1) < 5 * (0.09 / drawn.numel()) ** 0.5
    assert (drawn.mean(1) - 0.1).abs().max() < 5 * (0.09 / 20_000) ** 0.5
    assert (drawn.mean(0) - 0.1).abs().max() < 7 * (0.09 / 50) ** 0.5
    assert abs((drawn[1:] * drawn[:-1]).mean() - 0.01) < 5 * (0.0099 / drawn[1:].numel()) ** 0.5
    assert abs((drawn[:, 1:] * drawn[:, :-1]).mean() - 0.01) < 5 * (0.0099 / drawn.numel()) ** 0.5


def test_attention_is_even_over_the_kept_tokens_of_the_window_and_stays_in_its_segment() -> None:
    matcher = NameMatcher(2, window=3, scale=1.0, offset=0.0)
    # Two segments of three tokens; the middle chosen is the last of the first segment.
    chosen = torch.zeros(1, 2, 6)
    chosen[0, 0, 2] = 1.0
    chosen[0, 1, 4] = 1.0
    keep = torch.tensor([[[True, True, True], [True, True, False]]])
    expected = torch.tensor([[[0, 0.5, 0.5, 0, 0, 0], [0, 0, 0, 0.5, 0.5, 0]]])
    torch.testing.assert_close(matcher.attention(chosen, keep), expected)


def test_a_segment_may_be_one_window() -> None:
    matcher = NameMatcher(2, window=None, scale=1.0, offset=0.0)
    matcher.center.copy_(torch.tensor([1.0, 1.0]))
    hidden = torch.tensor([[[1.0, 3.0], [3.0, 1.0], [9.0, 9.0]], [[5.0, 1.0], [4.0, 4.0], [0, 0]]])
    keep = torch.tensor([[True, True, False], [True, False, False]])
    # Less the center: (0, 2) + (2, 0), and (4, 0).
    expected = torch.tensor([[[0.5**0.5, 0.5**0.5]], [[1.0, 0.0]]])
    torch.testing.assert_close(matcher.directions(hidden, keep), expected)
    attention = matcher.attention(torch.tensor([[[0.0, 1.0]]]), keep[None])
    torch.testing.assert_close(attention, torch.tensor([[[0.0, 0.0, 0.0, 1.0, 0.0, 0.0]]]))
