"""Bags of tokens against scikit-learn's TF-IDF."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from plant_dist.models.bag import SCALE, TokenBag, smooth_idf

V, R = 9, 4
token_lists = st.lists(st.integers(0, V - 1), min_size=1, max_size=12)


def counts_of(documents: list[list[int]]) -> np.ndarray:
    return np.stack([np.bincount(one, minlength=V) for one in documents])


@settings(max_examples=60, deadline=None)
@given(
    training=st.lists(token_lists, min_size=1, max_size=6),
    documents=st.lists(token_lists, min_size=1, max_size=4),
    seed=st.integers(0, 99),
)
def test_vectors_are_products_with_scikit_learns_features(
    training: list[list[int]], documents: list[list[int]], seed: int
) -> None:
    torch.manual_seed(seed)
    known = counts_of(training)
    held = torch.from_numpy((known > 0).sum(0))
    bag = TokenBag(V, R).double()
    bag.idf.copy_(smooth_idf(held, len(training)))
    # What no training document holds counts nothing; scikit-learn would give it the largest idf.
    said = counts_of(documents) * (held > 0).numpy()
    tfidf = TfidfTransformer(sublinear_tf=True).fit(known)
    expected = SCALE * tfidf.transform(said).toarray() @ bag.factors.detach().numpy()

    width = max(map(len, documents)) + 2
    ids, keep = torch.full((len(documents), width), 3), torch.zeros(len(documents), width).bool()
    for row, one in enumerate(documents):
        # From the second place on, so that dropped tokens stand on both sides.
        ids[row, 1 : len(one) + 1], keep[row, 1 : len(one) + 1] = torch.tensor(one), True
    np.testing.assert_allclose(bag(ids, keep).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


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
