from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from plant_dist.config.schema import RankConfig
from plant_dist.mig.graded import GradedLists, ReservedPairs, hold_out
from plant_dist.models.ranker import LexicalScorer
from plant_dist.objectives.ranking import ranking_loss
from plant_dist.runtime.context import RunContext
from plant_dist.train.rank_task import LexicalRanker, LexicalRankTask

V, L, R = 40, 11, 4
CONFIG = RankConfig(
    list_tokens=5, sampled_tokens=6, labels_per_batch=4, ndcg_at=(2, 5), truncation=4, width=R
)


def lists(fraction: float = 0.3) -> GradedLists:
    """Labels of 1 to 8 graded tokens; the last has none."""
    random = np.random.default_rng(0)
    counts = np.array([*random.integers(1, 9, L - 1), 0])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    tokens = np.concatenate([random.choice(V, count, replace=False) for count in counts])
    grades = np.concatenate([np.sort(random.integers(1, 5, count))[::-1] for count in counts])
    made = GradedLists(
        offsets, tokens.astype(np.int32), grades.astype(np.uint8),
        np.zeros(len(tokens), bool), ReservedPairs(0.0, 0),
    )  # fmt: skip
    return hold_out(made, fraction, seed=1)


def task(rank: int = 0, world: int = 1, **changes: Any) -> LexicalRankTask:
    torch.manual_seed(2)
    model = LexicalRanker(LexicalScorer(V, R), L)
    torch.nn.init.normal_(model.labels.fields["factor"])
    torch.nn.init.normal_(model.scorer.bias)
    documents = np.arange(1, V + 1)
    context = RunContext(rank=rank, world=world, seed=5)
    return LexicalRankTask(model, lists(), documents, replace(CONFIG, **changes), context)


def test_scores_are_factor_by_factor_and_bias() -> None:
    made = task()
    model = made.model
    assert isinstance(model, LexicalRanker)
    labels, tokens = torch.tensor([3, 0]), torch.tensor([[1, 2, 5], [7, 7, 0]])
    found = model(labels, tokens)
    for n, label in enumerate(labels):
        for m in range(3):
            token = tokens[n, m]
            by_hand = (
                model.scorer.factors[token] @ model.labels.fields["factor"][label]
                + model.scorer.bias[token]
            )
            assert found[n, m].item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_label_factors_start_at_zero_and_so_all_tokens_tie() -> None:
    model = LexicalRanker(LexicalScorer(V, R), L)
    assert model(torch.arange(3), torch.arange(6).reshape(3, 2)).abs().sum() == 0


def test_an_epoch_visits_every_label_with_tokens_once() -> None:
    made = task()
    labels = torch.cat([batch.labels for batch in made.batches(0, 0)]).tolist()
    assert sorted(labels) == lists().labels_to_train().tolist()
    assert len(labels) == len(set(labels)) <= L - 1
    assert made.batches_per_epoch(0) == -(-len(labels) // 4)


def test_the_loss_is_the_objective_of_the_batch() -> None:
    made = task()
    for batch in made.batches(0, 0):
        scores = made.model(batch.labels, batch.tokens)
        expected = ranking_loss(scores, batch.grades, batch.mask, CONFIG)
        assert made.loss(made.model, batch).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("world", [2, 3, 5])
@pytest.mark.parametrize("loss", ["lambdarank", "listnet"])
def test_the_mean_over_ranks_is_the_loss_of_one_process(world: int, loss: str) -> None:
    alone = task(loss=loss)
    ranks = [task(rank, world, loss=loss) for rank in range(world)]
    for epoch in range(2):
        streams = [each.batches(epoch, 0) for each in (alone, *ranks)]
        for one, *parts in zip(*streams, strict=True):
            expected = alone.loss(alone.model, one).item()
            shares = [
                each.loss(each.model, part).item() for each, part in zip(ranks, parts, strict=True)
            ]
            assert np.mean(shares) == pytest.approx(expected, rel=1e-5)
            assert {each.size(p).documents for each, p in zip(ranks, parts, strict=True)} == {
                len(one.labels)
            }


def test_lists_without_a_pair_weigh_nothing_on_any_rank() -> None:
    """A label whose every sampled token was barred, and with one graded token, orders nothing."""
    few = {"sampled_tokens": 1, "list_tokens": 1}
    alone, ranks = task(**few), [task(rank, 2, **few) for rank in range(2)]
    for made in (alone, *ranks):
        sampler = made._sampler
        original = sampler.draw

        def without(labels: Any, generator: Any, original: Any = original) -> Any:
            found = original(labels, generator)
            mask = found.mask.copy()
            mask[labels % 3 == 0, 1:] = False
            return found._replace(mask=mask)

        sampler.draw = without  # type: ignore[method-assign]
    uneven = 0
    streams = [made.batches(0, 0) for made in (alone, *ranks)]
    for one, *parts in zip(*streams, strict=True):
        expected = alone.loss(alone.model, one).item()
        shares = [
            each.loss(each.model, part).item() for each, part in zip(ranks, parts, strict=True)
        ]
        assert np.mean(shares) == pytest.approx(expected, rel=1e-5)
        uneven += len({int((part.labels % 3 == 0).sum()) for part in parts}) > 1
    assert uneven > 0


def test_draws_depend_on_seed_epoch_and_step_alone() -> None:
    straight = list(task().batches(1, 0))
    resumed = list(task().batches(1, 1))
    for one, other in zip(straight[1:], resumed, strict=True):
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.labels, other.labels)
    assert not torch.equal(straight[0].labels, next(iter(task().batches(0, 0))).labels)


def test_held_out_pairs_are_never_drawn() -> None:
    made, graded = task(), lists()
    held = {
        (label, int(graded.tokens[entry]))
        for label in range(L)
        for entry in range(graded.offsets[label], graded.offsets[label + 1])
        if graded.held_out[entry]
    }
    assert held
    for epoch in range(20):
        for batch in made.batches(epoch, 0):
            row, column = batch.mask.nonzero(as_tuple=True)
            pairs = set(
                zip(batch.labels[row].tolist(), batch.tokens[row, column].tolist(), strict=True)
            )
            assert not pairs & held


def test_validation_is_the_mean_over_labels_on_every_number_of_ranks() -> None:
    made = task()
    metrics = made.validate(made.model)
    each = made.measure(made.score_with(made.model))
    assert each.labels.tolist() == lists().labels_held_out().tolist()
    assert metrics["ndcg@2"] == pytest.approx(each.ndcg[:, 0].mean())
    assert set(metrics) == set(made.metric_names) == {"ndcg@2", "ndcg@5"}
    assert made.best_metric == "ndcg@5"


def test_the_rate_is_the_one_asked_for() -> None:
    [group] = task(learning_rate=0.5).parameter_groups()
    assert group.learning_rate == 0.5


def test_training_raises_the_ndcg_of_the_lists_themselves() -> None:
    made = task(learning_rate=0.05)
    [group] = made.parameter_groups()
    optimizer = torch.optim.Adam(group.parameters, group.learning_rate)
    losses = []
    for epoch in range(60):
        for batch in made.batches(epoch, 0):
            optimizer.zero_grad()
            loss = made.loss(made.model, batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert np.mean(losses[-6:]) < 0.2 * np.mean(losses[:6])
