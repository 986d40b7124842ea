"""How long a checkpoint holds up training, written beside it and written while it waits.

A model of 27 million weights trains with AdamW; every 12th step saves a checkpoint of 0.3 GB, in
turn with `runtime.async_checkpoints` always and never. Told of each: seconds of the call that
saves, seconds that the step took in all (saving included), seconds of the steps that go on while a
thread writes, against those of undisturbed ones, and how many steps later the checkpoint was whole.

    python benchmarks/checkpoints.py [--folder FOLDER]      # a minute; FOLDER: where to write
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from machine import described_machine, load
from torch import nn

from plant_dist.runtime.checkpoint import Checkpoints, TrainingState
from plant_dist.runtime.context import RunContext, peak_memory_bytes

LAYERS, WIDTH, DOCUMENTS = 26, 1024, 96
EVERY, ROUNDS = 12, 5
RESULTS = Path(__file__).parent / "results" / "checkpoints.json"


def made() -> TrainingState:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return TrainingState(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))


def step(state: TrainingState) -> None:
    state.model(torch.randn(DOCUMENTS, WIDTH)).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()


def trained(folder: Path, beside: str) -> dict[str, Any]:
    """Seconds of steps, by what happened in them."""
    checkpoints, state = Checkpoints(folder, RunContext(), keep=1, beside=beside), made()
    found: dict[str, list[float]] = {"undisturbed": [], "writing": [], "saving": [], "call": [],
                                     "steps until whole": []}  # fmt: skip
    for _ in range(3):
        step(state)
    saved_at = 0
    for number in range(1, EVERY * ROUNDS + EVERY):
        began, busy = time.perf_counter(), checkpoints.writing
        step(state)
        before = checkpoints.latest()
        checkpoints.poll()
        if checkpoints.latest() != before:
            found["steps until whole"].append(float(number - saved_at))
        saving = number % EVERY == 0
        if saving:
            called = time.perf_counter()
            checkpoints.save(state, {}, number, wait=False)
            found["call"].append(time.perf_counter() - called)
            saved_at = number
        taken = time.perf_counter() - began
        found["saving" if saving else "writing" if busy else "undisturbed"].append(taken)
    checkpoints.finish()
    size = sum(path.stat().st_size for path in checkpoints.path(saved_at).iterdir())
    return {**found, "gigabytes": size / 1e9, "peak_gib": peak_memory_bytes() / 2**30}


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [statistics.median(values), min(values), max(values)] if values else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    options = parser.parse_args()
    torch.set_num_threads(1)
    busy, rows = load(), {}
    # Never first: peak memory only grows.
    for beside in ("never", "always"):
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = trained(Path(folder), beside)
        rows[beside] = {
            name: spread(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
        undisturbed = rows[beside]["undisturbed"][0]
        waited = sum(found["saving"]) + sum(found["writing"])
        steps = len(found["saving"]) + len(found["writing"])
        # All that a checkpoint costs, in the step that saves and in those beside its writing.
        rows[beside]["held up"] = (waited - steps * undisturbed) / len(found["saving"])
        print(beside, json.dumps(rows[beside]))
    content = {
        "command": "python benchmarks/checkpoints.py", "machine": described_machine(), "load": busy,
        "cores": len(os.sched_getaffinity(0)), "threads": 1, "seed": 0,
        "checkpoints": ROUNDS, "every": EVERY,
        "seconds": "median, least, most", "async_checkpoints": rows,
    }  # fmt: skip
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
