"""Kills a rank at twenty random moments, and looks at what the training lost.

Runs `tests/distributed/fault_ranks.py`: two ranks under DDP, ZeRO-2 and ZeRO-3 in turn, checkpoints
every fourth of 24 steps, dropout on. Half of the kills (SIGKILL) fall in the middle of a step, half
at a random flush while a checkpoint is written. Then a full disk, a truncated shard, a rank that
hangs and one that is frozen. After each the same command goes on, and every loss must be, bit for
bit, that of a training that met no fault.

    python benchmarks/faults.py                    # some minutes
    python benchmarks/faults.py --found FOLDER     # sums up what fault_ranks.py has written there
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import described_machine

ROOT = Path(__file__).parents[1]
KILLS, SEED = 20, 1
SHOWN = ("engine", "moment", "rank", "step", "left", "trained again", "same curve")


def run(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "tests/distributed/fault_ranks.py"),
               "--folder-of-results", str(folder), "--kills", str(KILLS),
               "--seed", str(SEED)]  # fmt: skip
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    named = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run(command, env={**os.environ, **named}, check=True)


def summed_up(found: dict[str, Any]) -> dict[str, Any]:
    kills = [{name: one[name] for name in SHOWN} for one in found["kills"]]
    others = {
        name: {key: one[key] for key in SHOWN if key in one} | {"codes": one["codes"]}
        for name, one in found.items() if name != "kills"
    }  # fmt: skip
    return {
        "command": f"python benchmarks/faults.py ({KILLS} kills, seed {SEED})",
        "machine": described_machine(),
        "kills": len(kills),
        "same curve afterwards": sum(one["same curve"] for one in kills),
        "most steps trained again": max(one["step"] - one["left"] for one in kills),
        "by kill": kills,
        "other faults": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--found", type=Path, help="a folder of fault_ranks.py; else it is run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = options.found or Path(fresh)
        if options.found is None:
            run(folder)
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
    content = summed_up(found)
    path = ROOT / "benchmarks" / "results" / "faults.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"{content['same curve afterwards']} of {content['kills']} went on alike; {path}")


if __name__ == "__main__":
    main()
