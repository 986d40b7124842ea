from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from plant_dist.config.schema import LmConfig, LstmConfig
from plant_dist.data.csr import csr_from_lists
from plant_dist.data.segments import Segmentation
from plant_dist.data.tokens import SpecialTokens
from plant_dist.models.language_model import LanguageModel
from plant_dist.runtime.context import RunContext
from plant_dist.train.language_task import LanguageModelTask
from plant_dist.train.loop import LoopSettings, Trainer
from plant_dist.train.optim import check_groups
from plant_dist.train.splits import SplitArrays

V = 16
SEGMENTATION = Segmentation(8, 0, SpecialTokens(prefix=(2,), suffix=(3,), pad=0))
CALM = LstmConfig(
    width=8, inner_width=12, layers=2, window=5, embedding_dropout=0.0, input_dropout=0.0,
    hidden_dropout=0.0, output_dropout=0.0, weight_dropout=0.0,
)  # fmt: skip


def counting(size: int, seed: int) -> SplitArrays:
    """Documents that count upwards from anywhere: each token follows from the one before."""
    random = np.random.default_rng(seed)
    tokens = [
        [4 + (start + n) % (V - 4) for n in range(length)]
        for start, length in zip(random.integers(0, V, size), random.integers(1, 25, size),
                                 strict=True)
    ]  # fmt: skip
    ids = list(map(str, range(size)))
    return SplitArrays(csr_from_lists(tokens), csr_from_lists([[]] * size), ids)


def task(
    rank: int = 0, world: int = 1, lstm: LstmConfig = CALM, size: int = 23, **changes: Any
) -> LanguageModelTask:
    torch.manual_seed(1)
    model = LanguageModel.from_config(lstm, V)
    context = RunContext(rank=rank, world=world, seed=5)
    config = LmConfig(tokens_per_batch=100, **changes)
    return LanguageModelTask(
        model, counting(size, 1), counting(9, 2), SEGMENTATION, config, context
    )


def by_hand(made: LanguageModelTask, split: SplitArrays, rows: list[int]) -> tuple[float, int]:
    """Nats and tokens of documents read one by one, cut by hand."""
    model = made.model
    nats, count = 0.0, 0
    for row in rows:
        text = split.tokens.row(row).tolist()
        pieces = [text[start : start + 6] for start in range(0, len(text), 6)]
        stream = [token for piece in pieces for token in (2, *piece, 3)]
        read = torch.tensor(stream[::-1] if model.lstm.config.backward else stream)
        with torch.no_grad():
            states = model.lstm.states(read[None])[0]
            logits = states @ model.lstm.embedding.weight.T + model.bias
        asked = read[1:] >= 4
        nats += float(cross_entropy(logits[:-1][asked], read[1:][asked], reduction="sum"))
        count += int(asked.sum())
    return nats, count


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_loss_is_nats_per_document_token(direction: str) -> None:
    made = task(lstm=replace(CALM, direction=direction), activation_penalty=0, slowness_penalty=0)
    split = counting(23, 1)
    batches = list(made.batches(0, 0))
    assert len(batches) == made.batches_per_epoch(0) > 2
    for batch in batches:
        nats, count = by_hand(made, split, batch.rows.tolist())
        # A document that ends the text it is read from gives its last token without a successor.
        assert count == sum(len(split.tokens.row(row)) for row in batch.rows.tolist())
        assert made.loss(made.model, batch).item() == pytest.approx(nats / count, rel=1e-5)
        assert made.identify(batch) == [str(row) for row in batch.rows.tolist()]


def test_penalties_are_added_as_weighted() -> None:
    plain, both = (
        task(activation_penalty=0, slowness_penalty=0),
        task(activation_penalty=2.0, slowness_penalty=3.0),
    )
    for batch in plain.batches(0, 0):
        counted = batch.keep
        found = plain.model(batch.input_ids, batch.attention_mask, counted)
        expected = (found.nll + 2 * found.activation + 3 * found.slowness) / found.tokens
        assert both.loss(both.model, batch).item() == pytest.approx(expected.item(), rel=1e-5)
        assert expected > found.nll / found.tokens


@pytest.mark.parametrize("world", [2, 3])
def test_the_mean_over_ranks_is_the_loss_of_one_process(
    world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = task()
    ranks = [task(rank, world) for rank in range(world)]
    streams = [each.batches(0, 0) for each in (alone, *ranks)]
    for one, *parts in zip(*streams, strict=True):
        pairs = list(zip(ranks, parts, strict=True))
        # What the ranks would add up: the real documents' tokens, fillers left out.
        total = sum(int(part.keep[part.weights > 0].sum()) for part in parts)
        monkeypatch.setattr(
            "plant_dist.train.language_task.sum_across",
            lambda context, value, total=total: value if context.world == 1 else value * 0 + total,
        )
        shares = [each.loss(each.model, part).item() for each, part in pairs]
        expected = alone.loss(alone.model, one).item()
        assert sum(shares) / world == pytest.approx(expected, rel=1e-5)


def test_validation_counts_every_token_once_beside_the_unigram() -> None:
    made = task()
    split, train = counting(9, 2), counting(23, 1)
    made.model.eval()
    found = made.validate(made.model)
    assert list(found) == list(made.metric_names)
    nats, count = by_hand(made, split, list(range(9)))
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-5)
    seen = np.bincount(train.tokens.values, minlength=V)
    frequency = -np.log((seen + 1) / (seen.sum() + V))[split.tokens.values].mean()
    assert found["unigram_perplexity"] == pytest.approx(math.exp(frequency), rel=1e-5)


def test_every_parameter_is_in_the_group() -> None:
    for tied in (True, False):
        made = task(lstm=replace(CALM, tied_weights=tied))
        check_groups(made.model, made.parameter_groups())


def test_without_validation_there_are_no_metrics() -> None:
    model = LanguageModel.from_config(CALM, V)
    empty = SplitArrays(csr_from_lists([]), csr_from_lists([]), [])
    made = LanguageModelTask(model, counting(3, 1), empty, SEGMENTATION, LmConfig(), RunContext())
    assert made.metric_names == []


def train(made: LanguageModelTask, folder: Path) -> dict[str, float]:
    settings = LoopSettings.for_language_model(made._config, made.best_metric)
    return Trainer(made, settings, RunContext(seed=5), folder).run().best_metrics


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_can_be_learnt_is_learnt(direction: str, tmp_path: Path) -> None:
    made = task(
        lstm=replace(CALM, direction=direction, width=24, inner_width=32),
        size=60, epochs=10, schedule="constant", learning_rate=0.03, clip_norm=1.0,
        activation_penalty=0.0, slowness_penalty=0.0,
    )  # fmt: skip
    found = train(made, tmp_path)
    # Twelve tokens, each given by its neighbour; only a document's first one is open.
    assert found["unigram_perplexity"] > 11
    assert found["perplexity"] < 4


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path: Path) -> None:
    noisy = LstmConfig(width=8, inner_width=12, layers=2, window=5)
    ends = []
    for name, stops in (("whole", [7]), ("parts", [3, 7])):
        for steps in stops:
            made = task(lstm=noisy)
            settings = LoopSettings(
                epochs=3, best_metric="loss", max_steps=steps, checkpoint_steps=1, clip_norm=0.25,
                evaluate_epochs=100,
            )  # fmt: skip
            made.metric_names = []
            Trainer(made, settings, RunContext(seed=5), tmp_path / name).run()
        ends.append(made.model.state_dict())
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name
