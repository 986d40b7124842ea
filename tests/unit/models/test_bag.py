"""Bags of tokens against scikit-learn's TF-IDF."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from plant_dist.models.bag import SCALE, TokenBag, bucket_rows

V, R, H = 9, 4, 7
token_lists = st.lists(st.integers(0, V - 1), min_size=1, max_size=12)


def counts_of(documents: list[list[int]], features: int = V) -> np.ndarray:
    return np.stack([np.bincount(one, minlength=features) for one in documents])


def pairs_of(document: list[int]) -> list[int]:
    return [(1_000_003 * one + 7_919 * other) % H for one, other in pairwise(document)]


def features_of(documents: list[list[int]], buckets: int) -> list[np.ndarray]:
    """Counts of tokens, and of pairs where there are buckets for them."""
    kinds = [counts_of(documents)]
    if buckets:
        kinds.append(counts_of([pairs_of(one) for one in documents], buckets))
    return kinds


def batch_of(documents: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents with dropped tokens on both sides, and one inside."""
    width = max(map(len, documents)) + 3
    ids, keep = torch.full((len(documents), width), 3), torch.zeros(len(documents), width).bool()
    for row, one in enumerate(documents):
        places = [1, *range(3, len(one) + 2)]
        ids[row, places], keep[row, places] = torch.tensor(one), True
    return ids, keep


@pytest.mark.parametrize("buckets", [0, H], ids=["tokens", "tokens and pairs"])
@settings(max_examples=30, deadline=None)
@given(
    training=st.lists(token_lists, min_size=1, max_size=6),
    documents=st.lists(token_lists, min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_vectors_are_products_with_scikit_learns_features(
    buckets: int, training: list[list[int]], documents: list[list[int]], seed: int
) -> None:
    torch.manual_seed(seed)
    bag = TokenBag(V, R, buckets).double()
    # Each kind is a vector of its own length. A token counts from one training document on, which
    # scikit-learn would give the largest idf without; a pair from two.
    known, asked = (features_of(one, buckets) for one in (training, documents))
    held = [(one > 0).sum(0) for one in known]
    bag.plant(torch.from_numpy(np.concatenate(held)), len(training))
    features = np.hstack([
        TfidfTransformer(sublinear_tf=True).fit(trained).transform(one * (seen >= least)).toarray()
        for trained, seen, one, least in zip(known, held, asked, (1, 2), strict=False)
    ])  # fmt: skip
    expected = SCALE * features @ bag.factors.detach().numpy()
    ids, keep = batch_of(documents)
    np.testing.assert_allclose(bag(ids, keep).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    said = bag.by_position(ids, keep).detach()
    np.testing.assert_allclose(said.sum(1).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not said[~keep].any()


def test_a_pair_is_said_by_its_two_tokens_in_halves() -> None:
    bag = TokenBag(V, R, H)
    bag.idf[V:] = 1.0
    ids, keep = torch.tensor([[4, 8, 5]]), torch.tensor([[True, False, True]])
    (bucket,) = pairs_of([4, 5])
    half = SCALE * bag.factors[V + bucket] / 2
    torch.testing.assert_close(bag.by_position(ids, keep)[0], torch.stack([half, 0 * half, half]))


@given(documents=st.lists(st.lists(st.integers(0, V - 1), max_size=6), max_size=5))
def test_buckets_of_rows_are_those_of_their_pairs(documents: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, documents)])
    values = np.array([token for one in documents for token in one], dtype=np.int32)
    found_offsets, found = bucket_rows((offsets, values), H)
    expected = [pairs_of(one) for one in documents]
    assert found.tolist() == [bucket for one in expected for bucket in one]
    assert np.diff(found_offsets).tolist() == [len(one) for one in expected]


def test_a_document_of_nothing_known_is_zero() -> None:
    bag = TokenBag(V, R)
    ids = torch.tensor([[1, 2], [1, 2]])
    bag.idf[5] = 1.0
    assert not bag(ids, torch.tensor([[True, True], [False, False]])).any()


def test_only_factors_learn() -> None:
    bag = TokenBag(V, R)
    bag.idf.fill_(1.0)
    ids, keep = torch.tensor([[1, 2, 2, 4]]), torch.tensor([[True, True, True, False]])
    bag(ids, keep).sum().backward()
    moved = bag.factors.grad.abs().sum(1) > 0
    assert moved.nonzero()[:, 0].tolist() == [1, 2]
    assert [name for name, _ in bag.named_parameters()] == ["factors"]
