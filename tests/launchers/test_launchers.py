"""The launchers start real processes: how many, on what, and with which code they leave."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
from tiny_corpus import ROOT, environment, write_inputs

pytestmark = pytest.mark.distributed
# Each starts another engine; DeepSpeed's own launcher is one among others.
LAUNCHERS = {"torchrun": "zero2", "accelerate": "zero3", "deepspeed": "zero1"}
# Long enough to be met half-way.
LONG = ("--set", "train.epochs=15", "--set", "train.evaluate_epochs=8")


def variables(folder: Path, **more: str) -> dict[str, str]:
    plain = {
        name: value for name, value in environment(folder).items()
        # The launchers set these themselves.
        if name not in ("ACCELERATE_USE_CPU", "OMP_NUM_THREADS", "PYTHONPATH", "PLANT_LAUNCH")
    }  # fmt: skip
    return {**plain, "PYTHON": sys.executable, **more}


def start(folder: Path, launcher: str, *words: str, **more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(ROOT / "launchers" / f"{launcher}.sh"), *words], env=variables(folder, **more),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip


def left(process: subprocess.Popen[str]) -> tuple[int, str]:
    errors = process.communicate(timeout=300)[1]
    return process.returncode, errors


def records(run: Path) -> list[dict[str, Any]]:
    paths = sorted((run / "logs").glob("*/rank-*.json"))
    return [json.loads(path.read_text()) for path in paths]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with inputs, and a run in which only training is left to do."""
    folder = tmp_path_factory.mktemp("launchers")
    config = write_inputs(folder)
    code = (
        "import sys; from plant_dist.cli import main\n"
        "for stage in ('prepare', 'mig', 'rank'):\n"
        "    if code := main([stage, '--config', sys.argv[1]]): sys.exit(code)\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(config)], env=environment(folder), check=True,
        capture_output=True,
    )  # fmt: skip
    return folder


def half_way(prepared: Path, folder: Path) -> Path:
    for artifact in ("dataset", "gains", "ranker"):
        shutil.copytree(prepared / "run" / artifact, folder / "run" / artifact)
    return folder / "run"


def wait_for_checkpoint(run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 600
    while not (run / "checkpoints" / "train" / "latest").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_stop_is_code_75_and_the_same_command_goes_on(
    prepared: Path, tmp_path: Path, launcher: str
) -> None:
    engine = LAUNCHERS[launcher] if importlib.util.find_spec("deepspeed") else "ddp"
    if launcher == "deepspeed" and engine == "ddp":
        pytest.skip("deepspeed is not installed")
    run = half_way(prepared, tmp_path)
    words = ["--cpu", "2", "--stage", "train", str(prepared / "config.yaml"), "--output", str(run)]
    process = start(prepared, launcher, *words, *LONG, "--set", f"runtime.engine={engine}")
    wait_for_checkpoint(run, process)
    # One meets the launcher itself with a signal that it would die of, the others as usual.
    process.send_signal(signal.SIGUSR1 if launcher == "torchrun" else signal.SIGTERM)
    code, errors = left(process)
    assert code == 75, errors
    assert "status: train: classifier stopped by" in errors
    assert {one["world"] for one in records(run)} == {2}
    assert engine == "ddp" or f"engine: {engine}, offload none" in errors
    if launcher == "torchrun":
        # Under another engine than the one that saved.
        code, errors = left(start(prepared, launcher, *words, *LONG))
        assert code == 0, errors
        assert "classifier: going on after step" in errors
        assert engine == "ddp" or "changed settings: runtime.engine: zero2 → ddp" in errors
        assert (run / "classifier" / "model.safetensors").exists()


def test_a_killed_rank_is_named_before_the_one_that_lost_it(prepared: Path, tmp_path: Path) -> None:
    run = half_way(prepared, tmp_path)
    process = start(
        prepared, "torchrun", "--cpu", "2", "--stage", "train", str(prepared / "config.yaml"),
        "--output", str(run), *LONG,
    )  # fmt: skip
    wait_for_checkpoint(run, process)
    [victim] = [one for one in records(run) if one["rank"] == 1]
    os.kill(victim["process"], signal.SIGKILL)
    code, errors = left(process)
    assert code == 137, errors
    verdict = errors[errors.index("status: ") :].splitlines()
    assert "rank 1 on" in verdict[0]
    assert "ended without a word (killed" in verdict[0]
    assert "then rank 0 on" in verdict[1]
    assert "another rank ended or cannot be reached" in verdict[1]


def test_an_error_keeps_its_code(prepared: Path, tmp_path: Path) -> None:
    words = ["--cpu", "2", str(prepared / "config.yaml"), "--output", str(tmp_path / "run")]
    code, errors = left(
        start(prepared, "torchrun", *words, "--set", "data.path=nowhere.jsonl")
    )  # fmt: skip
    assert code == 3, errors
    assert "nowhere.jsonl" in errors[errors.index("status: ") :].splitlines()[0]


@pytest.mark.parametrize("visible", ["", None])
def test_without_a_gpu_nothing_starts_silently_on_the_processor(
    prepared: Path, visible: str | None
) -> None:
    if visible is None and shutil.which("nvidia-smi"):
        pytest.skip("this machine has GPUs")
    more = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    code, errors = left(start(prepared, "torchrun", str(prepared / "config.yaml"), **more))
    assert code == 2
    assert "no GPU is visible; for N processes on the processor say --cpu N" in errors


def test_one_process_for_each_visible_gpu(prepared: Path, tmp_path: Path) -> None:
    # Stands in for the interpreter and tells how it was called: there is no GPU to start on.
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$@"\n')
    fake.chmod(0o755)
    for launcher, option in (
        ("torchrun", "--nproc-per-node"),
        ("accelerate", "--num_processes"),
        ("deepspeed", "--num_gpus"),
    ):
        process = start(
            prepared, launcher, str(prepared / "config.yaml"), "--set", "seed=3",
            CUDA_VISIBLE_DEVICES="0,2,5", PYTHON=str(fake),
        )  # fmt: skip
        told, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        assert f"{option} 3" in told
        assert "plant_dist run" in told
        assert "runtime.processes=3 --set runtime.device=cuda --set seed=3" in told


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "is no config file"),
        (["nowhere.yaml"], "nowhere.yaml is no config file"),
        (["--cpu", "none", "{config}"], "--cpu none: give the number of processes"),
        (["--cpu"], "is no config file"),
    ],
)
def test_words_that_are_none(prepared: Path, words: list[str], complaint: str) -> None:
    filled = [word.format(config=prepared / "config.yaml") for word in words]
    code, errors = left(start(prepared, "torchrun", *filled))
    assert code == 2
    assert complaint in errors


def test_a_slip_in_the_config_is_said_once_with_its_own_code(prepared: Path) -> None:
    words = ["--cpu", "2", str(prepared / "config.yaml"), "--set", "train.epoch=1"]
    code, errors = left(start(prepared, "torchrun", *words))
    assert code == 2
    [line] = errors.splitlines()
    assert "unknown key train.epoch; did you mean train.epochs?" in line
