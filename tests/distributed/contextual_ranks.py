"""What two gloo processes do in test_contextual_ranks.py; rank 0 writes what came out as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from contextual_corpus import ALONE, train_contextual

from plant_dist.config.schema import RuntimeConfig
from plant_dist.runtime.collectives import end_run, gather_objects
from plant_dist.runtime.context import start_run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    folder: Path = parser.parse_args().folder_of_results
    runtime = RuntimeConfig(device="cpu", threads=1, processes=2, deterministic=False)
    context = start_run(runtime, seed=ALONE.seed)
    outcomes = gather_objects(context, train_contextual(folder / "checkpoints", context))
    if context.is_main:
        (folder / "found.json").write_text(json.dumps(outcomes))
    end_run(context)


if __name__ == "__main__":
    main()
