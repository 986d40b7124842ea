"""Lists of positions: by brute force, evenly drawn, and hashed as the graded lists are."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

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


class ByHand(NamedTuple):
    """What a list may hold: graded (position, grade) pairs, and positions of grade 0."""

    graded: list[tuple[int, int]]
    others: list[int]
    strangers: list[int]

    @property
    def items(self) -> list[tuple[int, int]]:
        return sorted(self.graded + [(place, 0) for place in self.others + self.strangers])

    @property
    def is_ranked(self) -> bool:
        return len({grade for _, grade in self.items}) > 1


def positions_by_hand(
    corpus: Corpus, ids_BT: Tensor, keep_BT: Tensor, strangers_S: Tensor, rows: list[int],
    held_out: bool,
) -> dict[tuple[int, int], ByHand]:  # fmt: skip
    """For each (document, label): what its lists may hold."""
    found = {}
    for document, row in enumerate(rows):
        for label in map(int, corpus.split.labels.row(row)):
            of_label, graded, others = owned(corpus.lists, label), [], []
            strangers = [
                place for place, token in enumerate(strangers_S.tolist())
                if token not in of_label
                and bool(corpus.lists.reserved.holds(label, token)) == held_out
            ]  # fmt: skip
            for place, token in enumerate(ids_BT[document].tolist()):
                position = len(strangers_S) + place
                if not keep_BT[document, place]:
                    continue
                if token in of_label:
                    if of_label[token][1] == held_out:
                        graded.append((position, of_label[token][0]))
                elif bool(corpus.lists.reserved.holds(label, token)) == held_out:
                    others.append(position)
            found[document, label] = ByHand(graded, others, strangers)
    return found


def expected_lists(
    truth: dict[tuple[int, int], ByHand],
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    return {pair: one.items for pair, one in truth.items() if one.is_ranked}


def test_unbounded_lists_are_every_position_that_training_may_see() -> None:
    corpus = made_corpus()
    task = task_of(corpus, replace(CONFIG, list_tokens=500, sampled_tokens=500))
    seen = 0
    for batch in list(task.batches(0, 0))[::STEPS_PER_READING]:
        segment = task._read(batch.documents)
        rows = batch.documents.rows.tolist()
        strangers = task.strangers_of(batch).input_ids
        assert len(strangers) > 100  # all that were read
        expected = expected_lists(positions_by_hand(
            corpus, segment.input_ids, segment.keep, strangers, rows, held_out=False
        ))  # fmt: skip
        assert shown(lists_of(task, batch)) == expected
        seen += len(expected)
    assert seen > 40


def test_drawn_lists_are_parts_of_the_right_size_and_change_with_the_step() -> None:
    corpus = made_corpus()
    task = task_of(corpus)
    first, second = list(task.batches(0, 0))[:2]
    assert first.documents is second.documents
    segment = task._read(first.documents)
    strangers = task.strangers_of(first).input_ids
    truth = positions_by_hand(
        corpus, segment.input_ids, segment.keep, strangers, first.documents.rows.tolist(),
        held_out=False,
    )  # fmt: skip
    drawn = shown(lists_of(task, first))
    assert drawn == shown(lists_of(task, first))
    assert drawn != shown(lists_of(task, second))
    cut = 0
    for pair, items in drawn.items():
        allowed, of_document = truth[pair], CONFIG.sampled_tokens - len(strangers)
        assert set(items) <= set(allowed.items)
        assert {(place, 0) for place in allowed.strangers} <= set(items)
        assert sum(grade > 0 for _, grade in items) == min(len(allowed.graded), CONFIG.list_tokens)
        zeros = sum(grade == 0 for _, grade in items) - len(allowed.strangers)
        assert zeros == min(len(allowed.others), of_document)
        cut += len(allowed.others) > of_document
    assert cut > 5


def test_every_position_is_drawn_equally_often() -> None:
    corpus = made_corpus(documents=1, fraction=0.0)
    task = task_of(corpus, replace(CONFIG, sampled_tokens=6))
    batch = next(iter(task.batches(0, 0)))
    segment = task._read(batch.documents)
    strangers = len(task.strangers_of(batch).input_ids)
    assert strangers == 3
    counts: Counter[int] = Counter()
    draws = 1500
    for seed in range(draws):
        items = next(iter(shown(lists_of(task, replace(batch, seed=stream(seed)))).values()))
        counts.update(place - 3 for place, grade in items if grade == 0 and place >= 3)
    none = torch.zeros(0, dtype=torch.int64)
    truth = positions_by_hand(corpus, segment.input_ids, segment.keep, none, [0], held_out=False)
    others = next(iter(truth.values())).others
    share = 3 / len(others)
    assert set(counts) == set(others)
    deviation = math.sqrt(share * (1 - share) / draws)
    assert max(abs(counts[p] / draws - share) for p in others) < 4.5 * deviation


def test_a_single_other_token_is_one_of_the_document() -> None:
    task = task_of(made_corpus(), replace(CONFIG, sampled_tokens=1))
    batch = next(iter(task.batches(0, 0)))
    assert len(task.strangers_of(batch).input_ids) == 0
    zeros = [sum(grade == 0 for _, grade in one) for one in shown(lists_of(task, batch)).values()]
    assert set(zeros) == {1}
    assert task.loss(task.model, batch).isfinite()


def test_held_out_lists_are_every_reserved_position() -> None:
    corpus = made_corpus()
    task = task_of(corpus)
    labels = set()
    for documents, lists in task._held_out_lists:
        expected = expected_lists(positions_by_hand(
            corpus, documents.input_ids.flatten(1), documents.keep.flatten(1),
            task._strangers.input_ids, documents.rows.tolist(), held_out=True,
        ))  # fmt: skip
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
