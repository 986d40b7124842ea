"""Scores against rivals, by hand and against the formula written out."""

from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.models.rivals import against_rivals


def test_a_document_by_hand() -> None:
    logits = torch.tensor([[8.0, 1.0, 4.0, 3.0]]).log()
    # The two best are 8 and 4; the rivals 1 and 3 have the strength 4.
    expected = torch.tensor([[8 / 4, 1 / 4, 4 / 4, 3 / 4]]).log()
    torch.testing.assert_close(against_rivals(logits, 2), expected)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), labels=st.integers(1, 7), best=st.integers(1, 9))
def test_equals_the_formula_and_keeps_the_order(seed: int, labels: int, best: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, labels, generator=generator, dtype=torch.float64)
    found = against_rivals(logits, best)
    assert torch.equal(found.argsort(1), logits.argsort(1))
    for before, after in zip(logits.tolist(), found.tolist(), strict=True):
        rivals = sorted(before, reverse=True)[min(best, labels - 1) :]
        strength = math.log(sum(map(math.exp, rivals))) if labels > 1 else 0.0
        torch.testing.assert_close(
            torch.tensor(after), torch.tensor([one - strength for one in before])
        )


def test_a_documents_own_level_goes() -> None:
    logits = torch.randn(2, 6)
    levels = torch.tensor([[100.0], [-7.0]])
    torch.testing.assert_close(
        against_rivals(logits + levels, 3), against_rivals(logits, 3), rtol=1e-4, atol=1e-4
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 9999), labels=st.integers(0, 6), best=st.integers(1, 9))
def test_places_without_a_label_are_nobodys_rivals(seed: int, labels: int, best: int) -> None:
    """An index may find fewer than were asked for."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(3, labels, generator=generator, dtype=torch.float64)
    places = torch.randperm(9, generator=generator)
    padded = torch.cat([logits, logits.new_full((3, 9 - labels), -torch.inf)], 1)[:, places]
    found = against_rivals(padded, best)
    back = torch.empty_like(found)
    back[:, places] = found
    torch.testing.assert_close(back[:, :labels], against_rivals(logits, best))
    assert (back[:, labels:] == -torch.inf).all()
