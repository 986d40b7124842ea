"""Segment arithmetic against walking through a document."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.config.schema import TokensConfig
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.errors import ConfigError


def walk(length: int, content: int, overlap: int) -> list[range]:
    """Segments of a document, one after the other, until nothing new is left."""
    segments = [range(min(length, content))]
    while segments[-1].stop < length:
        start = segments[-1].stop - overlap
        segments.append(range(start, min(length, start + content)))
    return segments


@settings(deadline=None)
@given(
    length=st.integers(0, 200),
    segment=st.integers(8, 40),
    overlap=st.integers(0, 5),
    special=st.sampled_from([((), ()), ((2,), (3,)), ((1,), ())]),
)
def test_counts_and_widths(length, segment, overlap, special):
    cut = Segmentation(segment, overlap, SpecialTokens(*special, pad=0))
    segments = walk(length, segment - sum(map(len, special)), overlap)
    widest = max(len(one) for one in segments) + sum(map(len, special))
    assert cut.counts(np.array([length])).tolist() == [len(segments)]
    assert cut.widths(np.array([length])).tolist() == [widest]
    assert cut.padded(np.array([length])).tolist() == [len(segments) * widest]


def test_the_docstring_example():
    cut = Segmentation(8, 2, SpecialTokens((2,), (3,), 0))
    assert (cut.content, cut.stride) == (6, 4)
    assert cut.counts(np.array([0, 6, 7, 10, 11])).tolist() == [1, 1, 2, 2, 3]


def test_padded_size_never_falls_with_length():
    cut = Segmentation(16, 5, SpecialTokens((2,), (3,), 0))
    assert (np.diff(cut.padded(np.arange(500))) >= 0).all()


def test_from_the_configuration(tokenizer, causal_tokenizer):
    config = TokensConfig(segment_tokens=16, overlap_tokens=4)
    assert Segmentation.of(config, tokenizer).content == 14
    assert Segmentation.of(config, causal_tokenizer).content == 16


def test_no_room_for_new_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"segment_tokens \(8\) leaves no room.*2 special"):
        Segmentation(8, 6, SpecialTokens((2,), (3,), 0))
