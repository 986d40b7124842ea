"""The contextual ranker's training: scores and losses by formula, ranks, and what it learns."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from contextual_corpus import (
    ALONE,
    CONFIG,
    SEGMENTATION,
    WIDTH,
    lists_of,
    made_corpus,
    related_encoder,
    shown,
    task_of,
    zero_ranker,
)

from plant_dist.data.sampling import BatchSampler
from plant_dist.objectives.ranking import ranking_loss
from plant_dist.train.contextual_task import (
    STEPS_PER_READING,
    ContextualRanker,
    ContextualRankTask,
    ReadingBatch,
    by_chance,
    by_token_frequency,
    rarity,
)
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.position_lists import label_pairs
from plant_dist.train.states import StatesCache


def test_nothing_is_reserved_where_nothing_is_held_out() -> None:
    task = task_of(made_corpus(fraction=0.0))
    assert len(task.held_out) == 0
    assert task.metric_names == []


def test_scores_and_loss_are_those_of_the_formula() -> None:
    corpus = made_corpus()
    task = task_of(corpus)
    batch = list(task.batches(0, 0))[1]
    segment, lists = task._read(batch.documents), lists_of(task, batch)
    strangers = task.strangers_of(batch)
    count = len(strangers.input_ids)
    model = task.model
    assert isinstance(model, ContextualRanker)
    factor, bias = model.labels.fields["factor"].double(), model.scorer.bias.double()
    expected = torch.zeros(lists.positions.shape, dtype=torch.float64)
    for n, (document, label) in enumerate(zip(lists.document, lists.label, strict=True)):
        for m, position in enumerate(lists.positions[n]):
            if position < count:
                hidden, token = strangers.hidden[position], strangers.input_ids[position]
            else:
                place = document, position - count
                hidden, token = segment.hidden[place], segment.input_ids[place]
            expected[n, m] = hidden.double() @ factor[label] / math.sqrt(WIDTH) + bias[token]
    assert (lists.positions[lists.mask] < count).any()
    found = model(
        segment.hidden, segment.input_ids, strangers, lists.document, lists.label, lists.positions
    )
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    loss = ranking_loss(expected, lists.grades, lists.mask, CONFIG)
    torch.testing.assert_close(task.loss(model, batch).double(), loss, rtol=1e-5, atol=1e-6)


def test_masked_items_and_held_out_tokens_do_not_reach_the_gradient() -> None:
    """The bias of a token moves only where some label's training list may hold it."""
    corpus = made_corpus()
    task = task_of(corpus, replace(CONFIG, list_tokens=500, sampled_tokens=500))
    batch = next(iter(task.batches(0, 0)))
    task.loss(task.model, batch).backward()  # type: ignore[no-untyped-call]
    lists, segment = lists_of(task, batch), task._read(batch.documents)
    strangers = task.strangers_of(batch).input_ids.expand(len(lists.label), -1)
    ids = torch.cat([strangers, segment.input_ids[lists.document]], 1).gather(1, lists.positions)
    assert isinstance(task.model, ContextualRanker)
    moved = task.model.scorer.bias.grad
    assert moved is not None
    assert set(moved.nonzero().flatten().tolist()) <= set(ids[lists.mask].tolist())
    assert not {0, 1, 2} & set(moved.nonzero().flatten().tolist())
    grad = task.model.labels.fields["factor"].grad
    assert grad is not None
    assert set(grad.abs().sum(1).nonzero().flatten().tolist()) <= set(lists.label.tolist())


def test_the_encoder_is_read_once_a_few_steps_and_never_trained() -> None:
    task = task_of(made_corpus())
    task._encoder.train()
    task = task_of(made_corpus())
    assert not task._encoder.training
    assert len(task._strangers.input_ids) > 100  # read once, before
    reads: list[int] = []
    task._encoder.register_forward_hook(lambda *_: reads.append(1))
    batches = list(task.batches(0, 0))
    assert len(batches) == task.batches_per_epoch(0)
    for batch in batches:
        task.loss(task.model, batch).backward()  # type: ignore[no-untyped-call]
    assert len(reads) * STEPS_PER_READING == len(batches)
    assert all(p.grad is None and not p.requires_grad for p in task._encoder.parameters())


def test_an_epoch_goes_on_from_any_step() -> None:
    task = task_of(made_corpus())
    whole = [shown(lists_of(task, batch)) for batch in task.batches(1, 0)]
    for start in (1, STEPS_PER_READING, STEPS_PER_READING + 2):
        rest = [shown(lists_of(task, batch)) for batch in task.batches(1, start)]
        assert rest == whole[start:]


@pytest.mark.parametrize("world", [2, 3])
def test_the_lists_of_all_ranks_are_those_of_the_whole_batch(world: int) -> None:
    corpus = made_corpus(documents=25)
    whole = task_of(corpus)
    ranks = [slice_of(task_of(corpus), rank, world) for rank in range(world)]
    steps = zip(whole.batches(0, 0), *(task.batches(0, 0) for task in ranks), strict=True)
    for batch, *shares in list(steps)[1::STEPS_PER_READING]:
        parts = [by_row(task, share) for task, share in zip(ranks, shares, strict=True)]
        joined = {key: items for part in parts for key, items in part.items()}
        assert joined == by_row(whole, batch)
        assert sum(map(len, parts)) == len(joined)
        losses = [task.loss(task.model, share) for task, share in zip(ranks, shares, strict=True)]
        mean = sum(loss * len(part) for loss, part in zip(losses, parts, strict=True)) / len(joined)
        torch.testing.assert_close(mean, whole.loss(whole.model, batch), rtol=1e-5, atol=1e-6)


def slice_of(task: ContextualRankTask, rank: int, world: int) -> ContextualRankTask:
    """The task reading a rank's documents, yet alone: its loss is the mean over its own lists."""
    task._sampler = BatchSampler(
        task._split.tokens.lengths(), SEGMENTATION, seed=ALONE.seed, rank=rank, world=world,
        documents_per_batch=task._documents_per_batch,
    )  # fmt: skip
    return task


def by_row(
    task: ContextualRankTask, batch: ReadingBatch
) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """(row in the split, label) -> what `shown` shows of the list."""
    rows = batch.documents.rows.tolist()
    lists = shown(lists_of(task, batch))
    return {(rows[document], label): items for (document, label), items in lists.items()}


def test_a_rank_without_lists_gives_a_loss_of_zero_and_zero_gradients() -> None:
    task = task_of(made_corpus())
    batch = next(iter(task.batches(0, 0)))
    empty = replace(batch.documents, weights=torch.zeros_like(batch.documents.weights))
    pairs = label_pairs(empty, task._lists, 9, 0)
    assert len(pairs.label) == 0
    loss = task.loss(task.model, ReadingBatch(empty, pairs, 0))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert all(p.grad is not None and not p.grad.any() for p in task.model.parameters())


def test_measured_ndcg_is_the_mean_of_a_labels_lists() -> None:
    corpus = made_corpus()
    task = task_of(corpus)
    score = task.score_with(task.model)
    found: dict[int, list[float]] = {}
    for documents, lists in task._held_out_lists:
        scores = score(documents, task._strangers, lists)
        for n, label in enumerate(lists.label.tolist()):
            items = lists.mask[n].nonzero().flatten().tolist()
            gains = [2.0 ** int(lists.grades[n, m]) - 1 for m in items]
            order = sorted(range(len(items)), key=lambda i: -float(scores[n, items[i]]))
            discounts = [1 / math.log2(2 + place) for place in range(4)]
            dcg = sum(gains[i] * d for i, d in zip(order, discounts, strict=False))
            ideal = sum(g * d for g, d in zip(sorted(gains, reverse=True), discounts, strict=False))
            found.setdefault(label, []).append(dcg / ideal)
    measured = task.measure(score)
    assert measured.labels.tolist() == sorted(found)
    expected = [float(np.mean(found[label])) for label in sorted(found)]
    np.testing.assert_allclose(measured.ndcg[:, 1], expected, atol=1e-9)
    assert task.validate(task.model)["ndcg@4"] == pytest.approx(np.mean(expected))


def test_rarity_is_log_inverse_frequency_about_its_mean_and_zero_for_unseen_tokens() -> None:
    found = rarity(np.array([0, 1, 4, 2]))
    expected = torch.tensor([0.0, math.log(2), -math.log(2), 0.0])
    torch.testing.assert_close(found, expected)


def test_training_beats_frequency_rarity_and_chance_by_far(tmp_path: Path) -> None:
    corpus = made_corpus(documents=150, fraction=0.2)
    model = zero_ranker()
    task = task_of(corpus, model=model, encoder=related_encoder())
    before = task.measure(task.score_with(model)).ndcg[:, 1].mean()
    loop = LoopSettings(epochs=4, best_metric="ndcg@4")
    Trainer(task, loop, ALONE, tmp_path).run()
    ranker = task.measure(task.score_with(model)).ndcg[:, 1].mean()
    frequency = by_token_frequency(corpus.token_documents)
    rare = by_token_frequency(corpus.token_documents, rarest=True)
    others = [task.measure(one).ndcg[:, 1].mean() for one in (frequency, rare, by_chance())]
    assert before == pytest.approx(others[2])  # zero factors and biases know nothing
    assert ranker > 0.85
    assert ranker > max(others) + 0.4


def test_hidden_states_kept_on_disk_stand_for_the_encoder(tmp_path: Path) -> None:
    corpus, encoder = made_corpus(), related_encoder()
    cache = StatesCache(tmp_path, "fp16", "tiny", encoder, SEGMENTATION, ALONE)
    states = cache.open(corpus.split.tokens)
    read = task_of(corpus, encoder=encoder)
    kept = task_of(replace(corpus, split=replace(corpus.split, states=states)), encoder=encoder)
    reads: list[int] = []
    kept._encoder.register_forward_hook(lambda *_: reads.append(1))
    losses = [
        [task.loss(task.model, batch).item() for batch in task.batches(0, 0)]
        for task in (read, kept)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    # Validation reads a part of the split, in an order of its own.
    measured = [task.measure(task.score_with(task.model)) for task in (read, kept)]
    np.testing.assert_allclose(*(one.ndcg for one in measured), atol=1e-3)
    before = len(reads)
    kept.measure(kept.score_with(kept.model))
    assert before == len(reads) < sum(1 for _ in read.batches(0, 0))
