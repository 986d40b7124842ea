"""What two gloo processes do in test_two_processes.py; rank 0 writes what came out as JSON.

    ACCELERATE_USE_CPU=true torchrun --standalone --nproc-per-node 2 \
        two_ranks.py --folder-of-results FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_task import PLAIN, AtStep, Curve, Loop, TinyTask, train_tiny

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import PlantError
from plant_dist.runtime import collectives
from plant_dist.runtime import context as run_context
from plant_dist.runtime.context import RunContext, start_run
from plant_dist.runtime.engine import Engine
from plant_dist.train.loop import LoopSettings

SETTINGS: dict[str, LoopSettings] = {
    "plain": PLAIN,
    "clipped": replace(PLAIN, clip_norm=0.05, schedule="cosine", warmup_fraction=0.2),
    "accumulated": replace(PLAIN, accumulation=4),
    "thawing": replace(PLAIN, unfreeze_epochs=(0.5, 1.5)),
    "averaged": replace(PLAIN, ema_decay=0.7),
}


def spoken(context: RunContext) -> dict[str, Any]:
    """Use every collective."""
    rank = context.rank
    collectives.barrier(context)
    return {
        "sum": collectives.sum_across(context, torch.tensor([rank + 1, 10 * rank])).tolist(),
        "mean": collectives.mean_across(context, torch.tensor(float(rank))).item(),
        "any": [collectives.any_rank(context, rank == 1), collectives.any_rank(context, False)],
        "gathered": collectives.gather_objects(context, f"rank {rank}"),
        # To rank 0 one number and to rank 1 two, which say whose they are.
        "exchanged": [
            one.tolist()
            for one in collectives.exchange_arrays(
                context, [np.array([10 * rank]), np.array([[10 * rank + 1, rank]])]
            )
        ],
        "broadcast": collectives.broadcast_object(context, f"from {rank}", source=1),
    }


def outcome(context: RunContext, folder: Path, settings: LoopSettings, **options: Any) -> Any:
    """Train; return losses, metrics, the final weights' sum and whether ranks agree."""
    curve, trainer = train_tiny(folder, settings, context, **options)
    weights = torch.cat([p.detach().flatten() for p in trainer.task.model.parameters()])
    both = collectives.gather_objects(context, weights.tolist())
    return {
        "losses": curve.losses,
        "metrics": curve.metrics,
        "weights": both[0],
        "ranks agree": all(one == both[0] for one in both),
        "tokens": [round(r.tokens_per_second / r.documents_per_second) for r in curve.reports],
    }


class FirstSeed(Curve):
    """Keeps the seed that torch's generator starts training with."""

    def started(self, loop: Loop) -> None:
        self.seed = torch.initial_seed()


def exchanges(context: RunContext) -> list[bool]:
    """Return whether ranks exchange gradients after a batch that is not the last, and the last."""
    model = torch.nn.Linear(2, 1)
    engine = Engine(context)
    wrapped = engine.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    found, gradient = [], [1.0, 2.0]
    for last in (False, True):
        with engine.accumulate(wrapped, last=last):
            x = torch.tensor([[g * (1 + context.rank) for g in gradient]])
            engine.backward(wrapped(x).sum())
        both = collectives.gather_objects(context, model.weight.grad.tolist())
        found.append(both[0] == both[1])
    return found


def error_of(context: RunContext, folder: Path, **options: Any) -> list[str]:
    """Train what must fail; return each rank's error."""
    try:
        train_tiny(folder, context=context, **options)
    except PlantError as error:
        return collectives.gather_objects(context, f"{error.exit_code} {error}")
    return ["no error"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    folder: Path = parser.parse_args().folder_of_results
    context = start_run(RuntimeConfig(device="cpu", threads=1, processes=2, deterministic=False))
    found: dict[str, Any] = {"world": context.world, "spoken": spoken(context)}
    for name, settings in SETTINGS.items():
        found[name] = outcome(context, folder / name, settings)
    dropping = replace(PLAIN, epochs=2)
    seed = FirstSeed()
    found["straight"] = outcome(context, folder / "straight", dropping, hooks=(seed,), dropout=0.3)
    found["seeds"] = collectives.gather_objects(context, seed.seed)
    found["exchanges"] = exchanges(context)
    stopped = Curve()
    only_rank_one = AtStep(
        3, lambda: os.kill(os.getpid(), signal.SIGUSR1) if context.rank == 1 else None
    )
    found["stop"] = error_of(
        context, folder / "resumed", settings=dropping, hooks=(stopped, only_rank_one), dropout=0.3
    )
    found["resumed"] = outcome(context, folder / "resumed", dropping, dropout=0.3)
    found["resumed"]["losses"] = stopped.losses + found["resumed"]["losses"]
    # Machines of two kinds, told by what rank 1 makes of `auto`.
    run_context.has_bf16 = lambda kind: context.rank == 1
    try:
        start_run(RuntimeConfig(device="cpu", threads=1, precision="auto"))
    except PlantError as error:
        found["unlike"] = collectives.gather_objects(context, f"{error.exit_code} {error}")
    # A document that falls to rank 1 in the first batch.
    task = TinyTask(context)
    rows = collectives.gather_objects(context, next(iter(task.batches(0, 0))).rows)
    found["poisoned"] = rows[1][0]
    found["failure"] = error_of(context, folder / "poisoned", poisoned=rows[1][0])
    if context.is_main:
        (folder / "found.json").write_text(json.dumps(found))
    collectives.end_run(context)


if __name__ == "__main__":
    main()
