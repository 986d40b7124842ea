"""What test_faults.py looks at: trainings of two ranks that meet a fault, and go on.

    python fault_ranks.py --folder-of-results FOLDER [--kills 20] [--seed 0]

Of each fault: how the ranks ended, what they said, the step that was left, and whether the losses
afterwards are bit for bit those of a training that met none.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from forked import beside, ended_ranks
from tiny_task import PLAIN, Curve, Loop, Settled, TinyTask, train_tiny
from zero_ranks import runtime_of

from plant_dist import logs
from plant_dist.runtime.context import RunContext

STEPS, EVERY = 24, 4
# Validated once at the end: checkpoints are the periodic ones.
SETTINGS = replace(PLAIN, epochs=4, max_steps=STEPS, checkpoint_steps=EVERY, evaluate_epochs=9,
                   keep_checkpoints=2, schedule="cosine", clip_norm=1.0)  # fmt: skip
ENGINES = ("ddp", "zero2", "zero3")
HANG_SECONDS = 10.0  # longer than a step on a machine that does much else


class InStep(Curve):
    """Does something on one rank in the middle of a step: before gradients are exchanged."""

    def __init__(self, rank: int, step: int, action: Callable[[], Any]) -> None:
        super().__init__()
        self.rank, self.step, self.action = rank, step, action

    def started(self, loop: Loop) -> None:
        task: TinyTask = loop.task  # type: ignore[attr-defined]
        plain = task.loss

        def loss(model: Any, batch: Any) -> Any:
            found = plain(model, batch)
            if loop.context.rank == self.rank and loop.state.step + 1 == self.step:
                self.action()
            return found

        task.loss = loss  # type: ignore[method-assign]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_flush(count: int) -> None:
    """Kill this process as it is about to flush something to disk for the n-th time."""
    flush = os.fsync

    def counted(handle: Any) -> None:
        nonlocal count
        count -= 1
        if count == 0:
            die()
        flush(handle)

    os.fsync = counted


def small_files() -> None:
    """Let no file grow: to a writer it is a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def train(
    context: RunContext, folder: Path, engine: str, fault: InStep | None = None
) -> list[float]:
    # What was saved before a fault is whole by then, so that what a fault leaves is known.
    hooks = (fault, Settled(fault.step - 1)) if fault else ()
    curve, _ = train_tiny(
        folder, SETTINGS, context, hooks, dropout=0.3,
        runtime=runtime_of(engine, hang_seconds=HANG_SECONDS),
    )  # fmt: skip
    return curve.losses


def losses_of(folder: Path, engine: str, words: Path | None = None) -> list[float]:
    """Train to the end on two ranks, going on from what there is."""
    told = folder.with_suffix(".losses.json")

    def work(context: RunContext) -> None:
        losses = train(context, folder, engine)
        if context.is_main:
            told.write_text(json.dumps(losses))

    codes = ended_ranks(2, work, words=words)
    assert codes == [0, 0], codes
    found: list[float] = json.loads(told.read_text())
    return found


def met(
    top: Path, name: str, engine: str, fault: InStep, straight: list[float],
    between: Callable[[Path], None] = lambda folder: None,
) -> dict[str, Any]:  # fmt: skip
    """Train until a fault, go on without it, and compare with `straight`."""
    words, folder = top / name, top / name / "checkpoints"
    words.mkdir()

    def work(context: RunContext) -> None:
        train(context, folder, engine, fault)

    codes = ended_ranks(2, work, words=words)
    said = [(words / f"rank-{rank}.err").read_text() for rank in (0, 1)]
    between(folder)
    latest = folder / "latest"
    left = int(latest.read_text().strip().removeprefix("step-")) if latest.exists() else 0
    losses = losses_of(folder, engine, words)
    resumed = (words / "rank-0.err").read_text()
    return {
        "engine": engine, "rank": fault.rank, "step": fault.step, "codes": codes, "left": left,
        "trained again": len(losses), "same curve": losses == straight[STEPS - len(losses) :],
        "said": said, "resumed": resumed,
    }  # fmt: skip


def truncate_newest(folder: Path) -> None:
    """Cut a rank's shard of the newest checkpoint short."""
    newest = folder / (folder / "latest").read_text().strip()
    shard = newest / "optimizer-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])


def main() -> None:
    # Warnings about a checkpoint that is passed over are among the words.
    logs.configure(rank=0)
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    top: Path = options.folder_of_results
    random = np.random.default_rng(options.seed)
    straight = {one: losses_of(top / f"straight-{one}", one) for one in ENGINES}
    idle = {
        "hung": ("ddp", InStep(1, 10, partial(time.sleep, 600))),
        "stopped": ("zero3", InStep(1, 10, lambda: os.kill(os.getpid(), signal.SIGSTOP))),
    }

    def waited_out(name: str) -> None:
        engine, fault = idle[name]
        found = met(top, name, engine, fault, straight[engine])
        (top / f"{name}.json").write_text(json.dumps(found))

    # They do little but wait for time to pass.
    waiting = [beside(partial(waited_out, name)) for name in idle]
    kills = []
    for number in range(options.kills):
        # Every other one while a checkpoint is written, at a random flush of a random rank.
        engine, rank = ENGINES[number % len(ENGINES)], int(random.integers(2))
        step = int(random.integers(EVERY + 1, STEPS))
        action: Callable[[], Any] = die
        if number % 2:
            step = step // EVERY * EVERY
            flush = int(random.integers(1, 17 if rank == 0 else 4))
            action = partial(die_at_flush, flush)
        fault = InStep(rank, step, action)
        kills.append(met(top, f"kill-{number}", engine, fault, straight[engine]))
        kills[-1]["moment"] = "writing" if number % 2 else "step"
    found = {
        "kills": kills,
        "full disk": met(top, "full", "zero2", InStep(1, 10, small_files), straight["zero2"]),
        "truncated": met(top, "truncated", "zero2", InStep(0, 18, die), straight["zero2"],
                         between=truncate_newest),
    }  # fmt: skip
    for ended in waiting:
        ended()
    found |= {name: json.loads((top / f"{name}.json").read_text()) for name in idle}
    (top / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed  # noqa: F401  (before forking)

    main()
