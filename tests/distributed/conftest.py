"""Lets the tests here import the modules beside them, and start two processes of one of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

HERE = Path(__file__).parent
sys.path.append(str(HERE))


Ended = subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the processes that are started: sums then come out alike here and there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def start_two() -> Callable[..., Ended]:
    """(script beside the tests, folder, *options) -> two gloo processes of it, ended."""

    def run(script: str, folder: Path, *options: str) -> Ended:
        # Options are long names: torchrun takes short ones for abbreviations of its own.
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            str(HERE / script), "--folder-of-results", str(folder), *options,
        ]  # fmt: skip
        path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
        # Without the first, Accelerate looks for GPUs; two processes share two cores.
        named = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        return subprocess.run(
            command, env={**os.environ, **named}, capture_output=True, text=True, timeout=300,
            check=False,
        )  # fmt: skip

    return run


@pytest.fixture(scope="session")
def run_two(start_two: Callable[..., Ended]) -> Callable[..., Any]:
    """As `start_two` -> what rank 0 wrote into the folder."""

    def run(script: str, folder: Path, *options: str) -> Any:
        ran = start_two(script, folder, *options)
        assert ran.returncode == 0, ran.stderr[-4000:]
        return json.loads((folder / "found.json").read_text())

    return run
