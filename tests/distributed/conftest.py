"""Lets the tests here import the modules beside them, and start two processes of one of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))


@pytest.fixture(scope="session")
def run_two() -> Callable[[str, Path], Any]:
    """(script beside the tests, folder) -> what rank 0 of two gloo processes of it wrote there."""

    def run(script: str, folder: Path) -> Any:
        # Options are long names: torchrun takes short ones for abbreviations of its own.
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(HERE / script), "--folder-of-results", str(folder),
        ]  # fmt: skip
        path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        # Without the first, Accelerate looks for GPUs; two processes share two cores.
        named = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        ran = subprocess.run(
            command, env={**os.environ, **named}, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-4000:]
        return json.loads((folder / "found.json").read_text())

    return run
