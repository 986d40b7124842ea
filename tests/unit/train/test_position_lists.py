"""Lists of positions: by brute force, evenly drawn, and hashed as the graded lists are."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import torch
from contextual_corpus import CONFIG, Corpus, lists_of, made_corpus, shown, task_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from plant_dist.mig.graded import GradedLists, ReservedPairs
from plant_dist.train.contextual_task import STEPS_PER_READING
from plant_dist.train.position_lists import label_pairs, reserved_pairs, stream


def owned(lists: GradedLists, label: int) -> dict[int, tuple[int, bool]]:
    """Grade and held-out flag of a label's tokens."""
    entries = range(int(lists.offsets[label]), int(lists.offsets[label + 1]))
    return {int(lists.tokens[e]): (int(lists.grades[e]), bool(lists.held_out[e])) for e in entries}


Found = dict[tuple[int, int], tuple[list[tuple[int, int]], list[int]]]


def positions_by_hand(
    corpus: Corpus, ids_BT: Tensor, keep_BT: Tensor, rows: list[int], held_out: bool
) -> Found:
    """For each (document, label): graded (position, grade) pairs and positions of grade 0."""
    found: Found = {}
    for document, row in enumerate(rows):
        for label in map(int, corpus.split.labels.row(row)):
            of_label, graded, others = owned(corpus.lists, label), [], []
            for position, token in enumerate(ids_BT[document].tolist()):
                if not keep_BT[document, position]:
                    continue
                if token in of_label:
                    if of_label[token][1] == held_out:
                        graded.append((position, of_label[token][0]))
                elif bool(corpus.lists.reserved.holds(label, token)) == held_out:
                    others.append(position)
            found[document, label] = graded, others
    return found


def is_ranked(graded: list[tuple[int, int]], others: list[int]) -> bool:
    return len({grade for _, grade in graded} | ({0} if others else set())) > 1


def test_unbounded_lists_are_every_position_that_training_may_see() -> None:
    corpus = made_corpus()
    task = task_of(corpus, replace(CONFIG, list_tokens=500, sampled_tokens=500))
    seen = 0
    for batch in list(task.batches(0, 0))[::STEPS_PER_READING]:
        segment = task._read(batch.documents)
        rows = batch.documents.rows.tolist()
        truth = positions_by_hand(corpus, segment.input_ids, segment.keep, rows, held_out=False)
        expected = {
            pair: sorted(graded + [(p, 0) for p in others])
            for pair, (graded, others) in truth.items()
            if is_ranked(graded, others)
        }
        assert shown(lists_of(task, batch)) == expected
        seen += len(expected)
    assert seen > 40


def test_drawn_lists_are_parts_of_the_right_size_and_change_with_the_step() -> None:
    corpus = made_corpus()
    task = task_of(corpus)
    first, second = list(task.batches(0, 0))[:2]
    assert first.documents is second.documents
    segment = task._read(first.documents)
    truth = positions_by_hand(
        corpus, segment.input_ids, segment.keep, first.documents.rows.tolist(), held_out=False
    )
    drawn = shown(lists_of(task, first))
    assert drawn == shown(lists_of(task, first))
    assert drawn != shown(lists_of(task, second))
    cut = 0
    for pair, items in drawn.items():
        graded, others = truth[pair]
        assert set(items) <= {*graded, *((p, 0) for p in others)}
        assert sum(grade > 0 for _, grade in items) == min(len(graded), CONFIG.list_tokens)
        assert sum(grade == 0 for _, grade in items) == min(len(others), CONFIG.sampled_tokens)
        cut += len(others) > CONFIG.sampled_tokens
    assert cut > 5


def test_every_position_is_drawn_equally_often() -> None:
    corpus = made_corpus(documents=1, fraction=0.0)
    task = task_of(corpus, replace(CONFIG, sampled_tokens=3))
    batch = next(iter(task.batches(0, 0)))
    segment = task._read(batch.documents)
    counts: Counter[int] = Counter()
    draws = 1500
    for seed in range(draws):
        items = next(iter(shown(lists_of(task, replace(batch, seed=stream(seed)))).values()))
        counts.update(position for position, grade in items if grade == 0)
    truth = positions_by_hand(corpus, segment.input_ids, segment.keep, [0], held_out=False)
    others = next(iter(truth.values()))[1]
    share = 3 / len(others)
    assert set(counts) == set(others)
    deviation = math.sqrt(share * (1 - share) / draws)
    assert max(abs(counts[p] / draws - share) for p in others) < 4.5 * deviation


def test_held_out_lists_are_every_reserved_position() -> None:
    corpus = made_corpus()
    task = task_of(corpus)
    labels = set()
    for documents, lists in task._held_out_lists:
        rows = documents.rows
        order = task._validation_rows()
        truth = positions_by_hand(
            corpus, documents.input_ids.flatten(1), documents.keep.flatten(1),
            order[rows.numpy()].tolist(), held_out=True,
        )  # fmt: skip
        expected = {
            pair: sorted(graded + [(p, 0) for p in others])
            for pair, (graded, others) in truth.items()
            if is_ranked(graded, others)
        }
        assert shown(lists) == expected
        labels |= {label for _, label in expected}
    assert task.held_out.tolist() == sorted(labels)
    assert len(labels) > 8


@settings(deadline=None, max_examples=50)
@given(st.floats(0.0, 1.0), st.integers(0, 2**31), st.lists(st.integers(0, 2**31 - 1), min_size=1))
def test_the_devices_hash_is_that_of_the_graded_lists(
    fraction: float, seed: int, numbers: list[int]
) -> None:
    reserved = ReservedPairs(fraction, seed)
    labels = np.array(numbers)
    tokens = labels[::-1].copy()
    found = reserved_pairs(
        reserved, torch.from_numpy(labels)[:, None], torch.from_numpy(tokens)[None]
    )
    assert found.tolist() == reserved.holds(labels[:, None], tokens[None]).tolist()


def test_a_document_gives_no_more_lists_than_asked_and_the_draw_decides_which() -> None:
    corpus = made_corpus()
    batch = next(iter(task_of(corpus).batches(0, 0))).documents
    counts = batch.label_offsets.diff()
    assert counts.max() == 3
    drawn = [label_pairs(batch, corpus.lists, 2, stream(seed)) for seed in range(20)]
    for pairs in drawn:
        gold = zip(pairs.document.tolist(), pairs.label.tolist(), strict=True)
        per_document = Counter(document for document, _ in gold)
        assert per_document == {d: min(int(n), 2) for d, n in enumerate(counts)}
    full = counts.argmax()
    chosen = {tuple(pairs.label[pairs.document == full].sort().values.tolist()) for pairs in drawn}
    assert len(chosen) == 3  # both of every two of three labels
