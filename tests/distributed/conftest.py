"""Lets the tests here import the modules beside them, and run one of them on several processes."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

from fork_server import Server


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """As the processes that are started: sums then come out alike here and there."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """What runs scripts beside the tests."""
    started = Server()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def run_two(server: Server) -> Callable[..., Any]:
    """(script beside the tests, folder, *options) -> what rank 0 of two gloo processes wrote."""

    def run(script: str, folder: Path, *options: str) -> Any:
        ended = server.run(script, folder, *options)
        assert ended.codes == [0, 0], ended.words[-4000:]
        return json.loads((folder / "found.json").read_text())

    return run
