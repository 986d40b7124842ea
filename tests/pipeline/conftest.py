"""One finished run that the tests of this folder look at, copy and spoil."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest
import torch

sys.path.append(str(Path(__file__).parent))
from tiny_corpus import write_inputs

from plant_dist.cli import main


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with corpus, encoder and config; the process's settings are put back at the end."""
    folder = tmp_path_factory.mktemp("tiny")
    write_inputs(folder)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cache, datasets.config.HF_DATASETS_CACHE = (
        datasets.config.HF_DATASETS_CACHE,
        str(folder / "cache"),
    )
    yield folder
    datasets.config.HF_DATASETS_CACHE = cache
    torch.use_deterministic_algorithms(deterministic)
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def finished(inputs: Path) -> Path:
    """The same folder after `plant-dist run`; its `run` folder must not be changed."""
    assert main(["run", "--config", str(inputs / "config.yaml"), "--debug"]) == 0
    return inputs


@pytest.fixture
def config(inputs: Path) -> str:
    return str(inputs / "config.yaml")


@pytest.fixture
def run_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run folder, to be changed."""
    return Path(shutil.copytree(finished / "run", tmp_path / "run"))


@pytest.fixture
def model_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the classifier folder alone, at another place."""
    return Path(shutil.copytree(finished / "run" / "classifier", tmp_path / "moved"))
