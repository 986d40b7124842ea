"""Batches against a collator in plain Python, and the loader in one process and in two."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.sampling import BatchSampler, Share
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens

PAD = 9
SPECIAL = st.sampled_from([((2,), (3,)), ((), ()), ((1,), ()), ((), (3,)), ((1, 2), (3, 4))])


def share_of(count: int) -> Share:
    return Share(np.arange(count), np.ones(count, np.float32), float(count))


def naive(documents, segment, overlap, special):
    """Nested lists (ids, read, keep) of a batch, a token at a time."""
    prefix, suffix = map(list, special)
    content = segment - len(prefix) - len(suffix)
    rows = []
    for tokens in documents:
        cells, start, fresh = [], 0, 0
        while not cells or fresh < len(tokens):
            piece = tokens[start : start + content]
            ids = prefix + piece + suffix
            new = [at >= fresh for at in range(start, start + len(piece))]
            keep = [False] * len(prefix) + new + [False] * len(suffix)
            cells.append((ids, [True] * len(ids), keep))
            fresh = start + len(piece)
            start = fresh - overlap
        rows.append(cells)
    height = max(len(cells) for cells in rows)
    width = max(1, max(len(cell[0]) for cells in rows for cell in cells))
    filled = []
    for part, blank in ((0, PAD), (1, False), (2, False)):
        one = [[cell[part] + [blank] * (width - len(cell[part])) for cell in row] for row in rows]
        filled.append([row + [[blank] * width] * (height - len(row)) for row in one])
    return filled


@settings(deadline=None, max_examples=150)
@given(
    documents=st.lists(st.lists(st.integers(100, 200), max_size=45), min_size=1, max_size=5),
    segment=st.integers(10, 20),
    overlap=st.integers(0, 5),
    special=SPECIAL,
)
def test_segments_and_masks_equal_a_naive_collator(documents, segment, overlap, special):
    cut = Segmentation(segment, overlap, SpecialTokens(*special, pad=PAD))
    empty = csr_from_lists([[]] * len(documents))
    batch = Collator(cut)(csr_from_lists(documents), empty, share_of(len(documents)))
    ids, read, keep = naive(documents, segment, overlap, special)
    assert batch.input_ids.tolist() == ids
    assert batch.attention_mask.tolist() == read
    assert batch.keep.tolist() == keep
    # Whatever the overlap, what labels attend is the document, each token exactly once.
    for row, tokens in enumerate(documents):
        assert batch.input_ids[row][batch.keep[row]].tolist() == tokens


def test_a_document_worked_by_hand():
    cut = Segmentation(8, 2, SpecialTokens((2,), (3,), 0))
    tokens = csr_from_lists([list(range(10, 20)), [50]])
    share = Share(np.array([7, 4]), np.array([1, 0], np.float32), 5.0)
    batch = Collator(cut)(tokens, csr_from_lists([[4, 6], []]), share)
    assert batch.input_ids.tolist() == [
        [[2, 10, 11, 12, 13, 14, 15, 3], [2, 14, 15, 16, 17, 18, 19, 3]],
        [[2, 50, 3, 0, 0, 0, 0, 0], [0] * 8],
    ]
    assert batch.keep.int().tolist() == [
        [[0, 1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 0]],
        [[0, 1, 0, 0, 0, 0, 0, 0], [0] * 8],
    ]
    assert batch.attention_mask.int().tolist()[1] == [[1, 1, 1, 0, 0, 0, 0, 0], [0] * 8]
    assert batch.label_offsets.tolist() == [0, 2, 2]
    assert batch.label_ids.tolist() == [4, 6]
    assert batch.rows.tolist() == [7, -1]
    assert batch.weights.tolist() == [1.0, 0.0]
    assert batch.global_weight == 5.0
    assert batch.documents == 2


def test_types_are_those_of_the_contract():
    cut = Segmentation(8, 0, SpecialTokens((2,), (3,), 0))
    batch = Collator(cut)(csr_from_lists([[5]]), csr_from_lists([[1]]), share_of(1)).to("cpu")
    kinds = {name: getattr(batch, name).dtype for name in (
        "input_ids", "attention_mask", "keep", "label_offsets", "label_ids", "rows", "weights"
    )}  # fmt: skip
    assert kinds == {
        "input_ids": torch.int64, "attention_mask": torch.bool, "keep": torch.bool,
        "label_offsets": torch.int64, "label_ids": torch.int64, "rows": torch.int64,
        "weights": torch.float32,
    }  # fmt: skip
    assert isinstance(batch, Batch)
    assert batch.to("meta").keep.device.type == "meta"
    assert batch.to("meta").global_weight == 1.0


def test_a_document_without_tokens_is_one_segment_that_labels_do_not_attend():
    cut = Segmentation(8, 0, SpecialTokens((2,), (3,), 0))
    batch = Collator(cut)(csr_from_lists([[]]), csr_from_lists([[]]), share_of(1))
    assert batch.input_ids.tolist() == [[[2, 3]]]
    assert batch.attention_mask.all()
    assert not batch.keep.any()


def loaded(workers: int, rank: int, start: int = 0) -> list[Batch]:
    lengths = np.arange(23) % 11
    documents = [[100 + row] * size for row, size in enumerate(lengths)]
    labels = csr_from_lists([[row] if row % 3 else [] for row in range(23)])
    cut = Segmentation(8, 1, SpecialTokens((2,), (3,), 0))
    sampler = BatchSampler(lengths, cut, documents_per_batch=4, seed=2, rank=rank, world=2)
    loader = batch_loader(
        csr_from_lists(documents), labels, Collator(cut), sampler, 1, start, workers
    )
    assert len(loader) == sampler.count(1) - start
    return list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_loader_brings_every_document_with_its_labels(workers):
    seen = {}
    for rank in (0, 1):
        for batch in loaded(workers, rank):
            for at, row in enumerate(batch.rows.tolist()):
                if row < 0:
                    continue
                assert row not in seen
                gold = batch.label_ids[batch.label_offsets[at] : batch.label_offsets[at + 1]]
                tokens = batch.input_ids[at][batch.keep[at]].tolist()
                seen[row] = (tokens, gold.tolist())
    assert seen == {row: ([100 + row] * (row % 11), [row] if row % 3 else []) for row in range(23)}


def test_workers_do_not_hear_signals_to_the_group_of_their_process():
    cut = Segmentation(8, 0, SpecialTokens((2,), (3,), 0))
    tokens, labels = csr_from_lists([[7]] * 40), csr_from_lists([[]] * 40)
    sampler = BatchSampler(tokens.lengths(), cut, documents_per_batch=2)
    batches = iter(batch_loader(tokens, labels, Collator(cut), sampler, workers=1))
    next(batches)
    [worker] = batches._workers
    assert os.getpgid(worker.pid) == worker.pid != os.getpgid(0)


def test_loader_resumes_and_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    whole = loaded(0, 0)
    assert torch.equal(torch.get_rng_state(), state)
    for one, two in zip(whole[2:], loaded(0, 0, start=2), strict=True):
        assert torch.equal(one.input_ids, two.input_ids)
        assert torch.equal(one.rows, two.rows)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.0, 0.9), seed=st.integers(0, 2**20))
def test_a_thinned_batch_only_loses_tokens_that_labels_attend(share, seed):
    random = np.random.default_rng(seed)
    documents = csr_from_lists(
        [random.integers(9, 99, size).tolist() for size in random.integers(0, 40, 6)]
    )
    labels = csr_from_lists([[0]] * 6)
    cut = Segmentation(12, 2, SpecialTokens((2,), (3,), 0))
    batch = Collator(cut)(documents, labels, share_of(6))
    torch.manual_seed(seed)
    thinned = batch.thinned(share)
    gone = batch.keep & ~thinned.keep
    assert not (thinned.keep & ~batch.keep).any()
    # What the encoder reads loses the same places and no others.
    assert torch.equal(thinned.attention_mask, batch.attention_mask & ~gone)
    assert torch.equal(thinned.input_ids, batch.input_ids)
    assert torch.equal(thinned.keep.any((1, 2)), batch.keep.any((1, 2)))


def test_as_many_tokens_are_left_out_as_was_asked():
    documents = csr_from_lists([[7] * 500 for _ in range(40)])
    cut = Segmentation(52, 0, SpecialTokens((2,), (3,), 0))
    batch = Collator(cut)(documents, csr_from_lists([[0]] * 40), share_of(40))
    torch.manual_seed(0)
    left = batch.thinned(0.3).keep.sum() / batch.keep.sum()
    # 20,000 draws: a standard deviation of 0.3 %.
    assert abs(left.item() - 0.7) < 0.015
