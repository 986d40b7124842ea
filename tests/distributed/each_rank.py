"""The frame of a script that two gloo processes run: each computes, rank 0 writes what came out."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from plant_dist.config.schema import RuntimeConfig
from plant_dist.runtime.collectives import end_run, gather_objects
from plant_dist.runtime.context import RunContext, start_run


def run_on_each(compute: Callable[[Path, RunContext], Any], seed: int) -> None:
    """Write `[outcome of rank 0, outcome of rank 1]` into found.json of the folder asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    folder: Path = parser.parse_args().folder_of_results
    runtime = RuntimeConfig(device="cpu", threads=1, processes=2, deterministic=False)
    context = start_run(runtime, seed=seed)
    outcomes = gather_objects(context, compute(folder / "checkpoints", context))
    if context.is_main:
        (folder / "found.json").write_text(json.dumps(outcomes))
    end_run(context)
