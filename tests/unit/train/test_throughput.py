"""What a step costs and waits for, and that it waits for nothing else."""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import PLAIN, Curve, Loop, TinyBatch, TinyTask, train_tiny
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.updates import RowAdagrad
from plant_dist.runtime.context import RunContext
from plant_dist.train import hooks, loop
from plant_dist.train.loop import BatchSize, Trainer
from plant_dist.train.profile import RECORDED, Profile
from plant_dist.train.throughput import Speed, flops_per_token, matrix_flops


def test_six_operations_a_weight_that_learns_and_fewer_one_that_does_not() -> None:
    model = nn.Sequential(nn.Embedding(100, 3), nn.Linear(3, 5), nn.Linear(5, 2))
    assert flops_per_token(model) == 6 * (15 + 10)
    model[2].requires_grad_(False)
    assert flops_per_token(model) == 6 * 15 + 4 * 10
    # No gradient is asked of what stands before all that learns.
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    model[2].requires_grad_(True)
    assert flops_per_token(model) == 2 * 15 + 6 * 10
    # What is kept from another run does not run.
    assert flops_per_token(model, [model[1]]) == 6 * 10
    model.requires_grad_(True)
    # Rows are fetched, however many there are.
    model.append(ReplicatedRows(1000, {"query": 5}, RowAdagrad()))
    assert flops_per_token(model) == 6 * (15 + 10)


def test_utilisation_is_the_share_of_the_peak() -> None:
    speed = Speed(flops_per_token=2e9, peak_flops=1e12)
    assert speed.teraflops(100.0) == pytest.approx(0.2)
    assert speed.utilisation(100.0) == pytest.approx(0.2)
    assert matrix_flops(RunContext()) > 1e6


class Clock:
    """Time that passes in batches and losses alone."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class SlowTask(TinyTask):
    """One second for a batch, three for its loss."""

    clock: Clock

    def batches(self, epoch: int, start: int) -> Iterator[TinyBatch]:
        for batch in super().batches(epoch, start):
            self.clock.now += 1.0
            yield batch

    def loss(self, model: nn.Module, batch: TinyBatch) -> Any:
        self.clock.now += 3.0
        return super().loss(model, batch)


def test_waiting_for_batches_is_a_share_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    monkeypatch.setattr(hooks, "time", clock)
    # The window was made with the class, whose default is bound to the true clock.
    monkeypatch.setattr(
        hooks.Window.__dataclass_fields__["began"], "default_factory", clock.monotonic
    )
    task, curve = SlowTask(RunContext()), Curve()
    task.clock = clock
    settings = replace(PLAIN, epochs=1, log_steps=2, evaluate_epochs=9)
    Trainer(task, settings, RunContext(), tmp_path, hooks=[curve]).run()
    first = curve.reports[0]
    assert first.data_wait_share == pytest.approx(0.25)
    assert first.scalars()["7_speed/data_wait_share"] == first.data_wait_share
    assert first.documents_per_second == pytest.approx(16 / 8)
    assert first.memory_by_rank == [first.peak_memory_bytes]
    assert first.utilisation > 0


class Reads(TorchDispatchMode):
    """Counts values that are read from tensors, for which the host waits where they are a GPU's."""

    count, counting = 0, True

    def __init__(self) -> None:
        super().__init__()
        self.places: list[list[str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        read = func is torch.ops.aten._local_scalar_dense.default
        if read and self.counting:
            self.count += 1
            self.places.append(traceback.format_stack(limit=8))
        return func(*args, **(kwargs or {}))


class CountedTask(TinyTask):
    """Counts its tokens without a tensor, as a batch on the host would be."""

    def size(self, batch: TinyBatch) -> BatchSize:
        return BatchSize(batch.global_weight, 8 * len(batch.rows))


class CountReads(Curve):
    def __init__(self, mode: Reads) -> None:
        super().__init__()
        self.mode, self.counts = mode, [0]

    def stepped(self, loop: Loop) -> None:
        self.counts.append(self.mode.count)


def test_a_step_reads_nothing_from_the_device_until_it_is_logged(tmp_path: Path) -> None:
    settings = replace(PLAIN, log_steps=5, clip_norm=0.5, evaluate_epochs=9, max_steps=10)
    with Reads() as mode:
        counting = CountReads(mode)
        trainer = Trainer(
            CountedTask(RunContext()), settings, RunContext(), tmp_path, hooks=[counting]
        )
        # On a CPU, Adam's kernel reads its own count of steps; it is not the loop's to avoid.
        trainer._optimizer.register_step_pre_hook(lambda *_: setattr(mode, "counting", False))
        trainer._optimizer.register_step_post_hook(lambda *_: setattr(mode, "counting", True))
        trainer.run()
    steps = [after - before for before, after in pairwise(counting.counts)]
    # Step 6 counts what the report of step 5 read.
    assert [steps[n] for n in (1, 2, 3, 4, 6, 7, 8, 9)] == [0] * 8, mode.places[0]
    # It does see `item`, `float`, `bool` and the like.
    with Reads() as mode:
        assert torch.ones(()).item()
    assert mode.count == 1


def test_a_profile_holds_the_recorded_steps(tmp_path: Path) -> None:
    train_tiny(tmp_path / "run", PLAIN, hooks=(Profile(tmp_path / "profile"),))
    trace = json.loads((tmp_path / "profile" / "rank-0.trace.json").read_text())
    names = {event["name"] for event in trace["traceEvents"] if "name" in event}
    assert len([name for name in names if name.startswith("ProfilerStep#")]) == RECORDED
    assert "aten::addmm" in names
