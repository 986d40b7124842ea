"""Runs that are killed, asked to stop, or spread over two processes end like a run that is not."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_corpus import ROOT, environment, start

from plant_dist.cli import main

SIGNALS = (signal.SIGKILL, signal.SIGTERM)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"{path} is not there within two minutes"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def interrupted(
    finished: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[signal.Signals, tuple[Path, int, str]]:
    """Run folder, exit code and last words of a training that each signal met half-way."""
    found = {}
    # One after the other: a second training would run on while the first is seen to its end.
    for number in SIGNALS:
        run = tmp_path_factory.mktemp(number.name) / "run"
        shutil.copytree(finished / "run", run)
        shutil.rmtree(run / "classifier")
        shutil.rmtree(run / "report")
        words = ["train", "--config", str(finished / "config.yaml"), "--output", str(run)]
        process = start(finished, *words)
        wait_for(run / "checkpoints" / "train" / "latest", process)
        process.send_signal(number)
        found[number] = (run, *_end(process))
    return found


def _end(process: subprocess.Popen[str]) -> tuple[int, str]:
    errors = process.communicate(timeout=120)[1]
    return process.returncode, errors


@pytest.mark.pipeline
@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_an_interrupted_run_goes_on_to_the_same_model(
    interrupted: dict[signal.Signals, tuple[Path, int, str]],
    finished: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, code, words = interrupted[number]
    assert not (run / "classifier").exists()
    saved = int((run / "checkpoints/train/latest").read_text().strip().removeprefix("step-"))
    assert 3 <= saved < 30
    if number == signal.SIGTERM:
        assert code == 75
        last = words.strip().splitlines()[-1]
        assert last.startswith("plant-dist: train: classifier stopped by SIGTERM after step")
        assert "Traceback" not in words
    else:
        assert code == -signal.SIGKILL
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    told = capsys.readouterr().out
    stopped = number == signal.SIGTERM
    assert ("stopped, run it again to go on (train)" in told) == stopped
    assert ("failed: rank 0 on" in told and "ended without a word" in told) != stopped
    assert f"step-{saved:08d}, saved 0:0" in told
    assert main(["run", "--config", str(finished / "config.yaml"), "--output", str(run)]) == 0
    assert f"classifier: going on after step {saved}" in capsys.readouterr().err
    for name in ("model.safetensors", "thresholds.json"):
        straight = finished / "run" / "classifier" / name
        assert (run / "classifier" / name).read_bytes() == straight.read_bytes()
    reports = [json.loads((one / "report/report.json").read_text()) for one in
               (run, finished / "run")]  # fmt: skip
    assert reports[0] == reports[1]
    assert not list(run.rglob("*.partial"))


@pytest.mark.pipeline
@pytest.mark.distributed
@pytest.mark.parametrize("frozen", [False, True], ids=["trained encoder", "cached states"])
def test_two_processes_end_with_the_metrics_of_one(
    finished: Path, tmp_path: Path, frozen: bool
) -> None:
    # Without dropout, whose masks ranks draw for themselves.
    words = ["--config", str(finished / "config.yaml")]
    for setting in (
        "encoder.dropout=0.0",
        "model.dropout=0.0",
        "evaluate.baselines=[popularity,encoder]",
        *(["train.optim.freeze_encoder=true", "encoder.cache=fp16"] if frozen else []),
    ):
        words += ["--set", setting]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "plant_dist", "run", *words, "--set", "runtime.processes=2",
        "--output", str(tmp_path / "two"),
    ]  # fmt: skip
    together = subprocess.Popen(
        command, env=environment(finished), cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert main(["run", *words, "--output", str(tmp_path / "one")]) == 0
    code, errors = _end(together)
    assert code == 0, errors[-3000:]
    found = {}
    for name in ("one", "two"):
        report = json.loads((tmp_path / name / "report" / "report.json").read_text())
        found[name] = {system: one["metrics"] for system, one in report["systems"].items()}
    for system, metrics in found["one"].items():
        assert found["two"][system] == pytest.approx(metrics, abs=1e-4)
    # The result does not depend on the number of processes, so one goes on with two's artifacts.
    digests = [
        json.loads((tmp_path / name / "report/manifest.json").read_text())["digest"]
        for name in ("one", "two")
    ]
    assert digests[0] == digests[1]
