"""A training that a test interrupts from outside, in one process; exits as the program does.

python one_run.py --folder-of-results FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from tiny_task import PLAIN, Curve, Loop, Settled, train_tiny

from plant_dist.errors import PlantError
from plant_dist.runtime.launch import replace_json

SETTINGS = replace(PLAIN, epochs=4, checkpoint_steps=4)
PAUSE_STEP = 7


class Pause(Curve):
    """After one step, says so and waits for the file `go`: the test sends its signal meanwhile."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def stepped(self, loop: Loop) -> None:
        if loop.state.step == PAUSE_STEP:
            replace_json(self.folder / "paused", os.getpid())
            while not (self.folder / "go").exists():
                time.sleep(0.01)


def main() -> int:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder-of-results", type=Path, required=True)
    folder: Path = parser.parse_args().folder_of_results
    curve = Pause(folder)
    try:
        train_tiny(
            folder / "checkpoints", SETTINGS, hooks=(curve, Settled(PAUSE_STEP)), dropout=0.3
        )
    except PlantError as error:
        print(error, file=sys.stderr)
        (folder / "losses.json").write_text(json.dumps(curve.losses))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
