"""Strangers: one position of each token, as the encoder reads it there, drawn by the seed alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from contextual_corpus import Corpus, made_corpus, task_of, tiny_encoder

from plant_dist.train import strangers as module
from plant_dist.train.strangers import Strangers


def found_in(corpus: Corpus) -> Strangers:
    return task_of(corpus)._strangers


def test_every_token_of_the_documents_is_kept_once_as_it_stands_somewhere() -> None:
    corpus = made_corpus()
    found = found_in(corpus)
    assert sorted(found.input_ids.tolist()) == sorted(set(corpus.split.tokens.values.tolist()))
    # By brute force: every position of every document.
    task = task_of(corpus)
    anywhere: dict[int, list[torch.Tensor]] = {}
    for batch in task.batches(0, 0):
        segment = task._read(batch.documents)
        for token, hidden in zip(
            segment.input_ids[segment.keep].tolist(), segment.hidden[segment.keep], strict=True
        ):
            anywhere.setdefault(token, []).append(hidden)
    for token, hidden in zip(found.input_ids.tolist(), found.hidden, strict=True):
        distance = min(float((hidden - other).abs().max()) for other in anywhere[token])
        assert distance < 1e-5


def test_reading_ends_with_enough_tokens_or_enough_documents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corpus = made_corpus()
    monkeypatch.setattr(module, "STRANGERS", 50)
    few = found_in(corpus)
    assert len(few.input_ids) == len(few.hidden) == len(set(few.input_ids.tolist())) == 50
    monkeypatch.setattr(module, "DOCUMENTS", 1)
    monkeypatch.setattr(module, "STRANGERS", 4096)
    encoder, reads = tiny_encoder(), []
    encoder.register_forward_hook(lambda *_: reads.append(1))
    task = task_of(corpus, encoder=encoder)
    assert len(task._strangers.input_ids) < 150
    # One batch, and none of the lists to validate on.
    assert reads == [1]


def test_draws_are_even_and_hang_on_the_seed() -> None:
    pool = Strangers(torch.arange(20), torch.arange(20.0)[:, None])
    first = pool.drawn(5, 7)
    assert first.input_ids.tolist() == pool.drawn(5, 7).input_ids.tolist()
    assert first.hidden[:, 0].tolist() == first.input_ids.tolist()
    assert len(pool.drawn(50, 7).input_ids) == 20
    counts: Counter[int] = Counter()
    for seed in range(2000):
        counts.update(set(pool.drawn(5, seed).input_ids.tolist()))
    shares = np.array([counts[token] for token in range(20)]) / 2000
    deviation = np.sqrt(0.25 * 0.75 / 2000)
    assert sum(counts.values()) == 5 * 2000
    assert np.abs(shares - 0.25).max() < 4.5 * deviation
