"""A small real task: a three-block network on made documents, for tests of the loop.

It obeys the whole `Task` contract: batches sliced by rank with fillers, a loss whose mean over
ranks is that of the global batch, its own generator, reduced validation metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plant_dist.config.schema import OptimConfig, RuntimeConfig
from plant_dist.runtime.collectives import sum_across
from plant_dist.runtime.context import RunContext, seed_everything
from plant_dist.train.hooks import Hook, Loop, Report
from plant_dist.train.loop import BatchSize, LoopSettings, Trainer
from plant_dist.train.optim import ParameterGroup, encoder_groups

WIDTH, LABELS, DOCUMENTS = 8, 5, 44
PLAIN = LoopSettings(epochs=3, best_metric="loss", log_steps=1, checkpoint_steps=1000)


class TinyModel(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.Tanh()) for _ in range(3)
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(WIDTH, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + self.dropout(block(x))
        return self.head(x)


@dataclass
class TinyBatch:
    x: Tensor
    gold: Tensor
    rows: list[int]
    weights: Tensor
    global_weight: float


class TinyTask:
    """44 documents of 8 numbers and 5 labels; the labels follow from the numbers."""

    name = "tiny"
    metric_names = ("loss", "accuracy")

    def __init__(
        self,
        context: RunContext,
        batch: int = 8,
        dropout: float = 0.0,
        poisoned: int | None = None,
        layer_decay: float = 0.5,
    ) -> None:
        seed_everything(7)
        self.context, self.batch, self.layer_decay = context, batch, layer_decay
        self.model = TinyModel(dropout)
        made = np.random.default_rng(11)
        x = made.normal(size=(DOCUMENTS, WIDTH)).astype(np.float32)
        gold = x @ made.normal(size=(WIDTH, LABELS)).astype(np.float32) > 0
        self.x, self.gold = torch.from_numpy(x), torch.from_numpy(gold.astype(np.float32))
        if poisoned is not None:
            self.x[poisoned] = torch.nan

    def parameter_groups(self) -> list[ParameterGroup]:
        config = OptimConfig(encoder_learning_rate=0.02, layer_decay=self.layer_decay)
        blocks = [list(block.parameters()) for block in reversed(self.model.blocks)]
        head = ParameterGroup("head", list(self.model.head.parameters()), 0.05, 0.01)
        return [head, *encoder_groups(blocks, config)]

    def idle(self) -> Sequence[nn.Module]:
        return ()

    def batches_per_epoch(self, epoch: int) -> int:
        return -(-DOCUMENTS // self.batch)

    def batches(self, epoch: int, start: int) -> Iterator[TinyBatch]:
        order = np.random.default_rng([3, epoch]).permutation(DOCUMENTS)
        for at in range(start * self.batch, DOCUMENTS, self.batch):
            rows = order[at : at + self.batch]
            share = -(-len(rows) // self.context.world)
            mine = rows[self.context.rank * share : (self.context.rank + 1) * share]
            weights = torch.ones(len(mine))
            if len(mine) == 0:  # a filler, so that every rank has a batch
                mine, weights = rows[:1], torch.zeros(1)
            yield TinyBatch(self.x[mine], self.gold[mine], mine.tolist(), weights, len(rows))

    def loss(self, model: nn.Module, batch: TinyBatch) -> Tensor:
        each = nn.functional.binary_cross_entropy_with_logits(
            model(batch.x), batch.gold, reduction="none"
        ).mean(dim=1)
        return (each * batch.weights).sum() * self.context.world / batch.global_weight

    def size(self, batch: TinyBatch) -> BatchSize:
        return BatchSize(batch.global_weight, int(batch.weights.sum()) * WIDTH)

    def identify(self, batch: TinyBatch) -> list[str]:
        return [
            f"doc{row}" for row, weight in zip(batch.rows, batch.weights, strict=True) if weight
        ]

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        mine = slice(self.context.rank, None, self.context.world)
        scores = model(self.x[mine])
        loss = nn.functional.binary_cross_entropy_with_logits(
            scores, self.gold[mine], reduction="sum"
        )
        right = ((scores > 0) == (self.gold[mine] > 0)).sum()
        sums = sum_across(self.context, torch.stack([loss, right.float()])) / self.gold.numel()
        return {"loss": sums[0].item(), "accuracy": sums[1].item()}


class Curve(Hook):
    """Keeps what was reported."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.reports: list[Report] = []
        self.metrics: list[dict[str, float]] = []

    def reported(self, loop: Loop, report: Report) -> None:
        self.losses += report.losses
        self.reports.append(report)

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        self.metrics.append(dict(metrics))


class Settled(Hook):
    """Has a rank's steps wait until its checkpoint is written, up to a step.

    Beside training, a checkpoint gets its name at the first boundary at which no rank writes:
    with this at the one after the next step, on a machine of any speed.
    """

    def __init__(self, step: int) -> None:
        self.last = step

    def started(self, loop: Loop) -> None:
        task: TinyTask = loop.task  # type: ignore[attr-defined]
        plain = task.loss

        def loss(model: nn.Module, batch: TinyBatch) -> Tensor:
            while loop.state.step < self.last and loop.checkpoints.writing:  # type: ignore
                time.sleep(0.001)
            return plain(model, batch)

        task.loss = loss  # type: ignore[method-assign]


class AtStep(Hook):
    """Does something after one step."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def stepped(self, loop: Loop) -> None:
        if loop.state.step == self.step:
            self.action()


def train_tiny(
    folder: Path,
    settings: LoopSettings = PLAIN,
    context: RunContext | None = None,
    hooks: tuple[Hook, ...] = (),
    identity: str = "",
    runtime: RuntimeConfig | None = None,
    **options: Any,
) -> tuple[Curve, Trainer]:
    """Train the task in a folder (going on where it has checkpoints); return curve and trainer."""
    context = context or RunContext()
    curve = Curve()
    task = TinyTask(context, **options)
    trainer = Trainer(
        task, settings, context, folder, hooks=(curve, *hooks), identity=identity, runtime=runtime
    )
    trainer.result = trainer.run()  # type: ignore[attr-defined]
    return curve, trainer
