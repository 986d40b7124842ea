"""What a run leaves for those who watch it, and the copy of its dataset on a local disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from plant_dist.cli import main

pytestmark = pytest.mark.pipeline


def status(run: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    capsys.readouterr()
    assert main(["status", str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line[:12].strip(): line[12:] for line in lines}


def test_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = status(finished / "run", capsys)
    assert found["state"] == "ended well (evaluate)"
    assert found["artifacts"] == "dataset, gains, ranker, classifier, report"
    assert found["checkpoint"] == "none: the artifact is made"
    assert "1 process on" in found["launch"]


def test_what_a_training_told_is_what_its_report_and_curves_say(
    run_copy: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run_copy / "classifier")
    words = ["--config", config, "--output", str(run_copy)]
    assert main(["train", *words]) == 0
    told = json.loads((run_copy / "progress.json").read_text())
    assert (told["stage"], told["made"]) == ("train", True)
    # 3 epochs of 80 documents by 8.
    assert (told["step"], told["total_steps"], told["epoch"]) == (30, 30, 3.0)
    assert told["validated_step"] == 30
    assert told["best"]["map"] >= told["validation"]["map"] > 0
    found = status(run_copy, capsys)
    assert found["step"] == "30 of 30 (100 %), epoch 3.00"
    assert found["validation"].startswith("step 30: ")


def test_status_finds_the_folder_by_the_config(
    finished: Path, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["status", "--config", config]) == 0
    assert str(finished / "run") in capsys.readouterr().out
    assert main(["status", "--config", config, "--ended", "1"]) == 1
    assert "every rank ended well" in capsys.readouterr().err


def test_stages_read_the_copy_on_the_local_disk(
    run_copy: Path, config: str, tmp_path: Path, finished: Path
) -> None:
    disk = tmp_path / "disk"
    words = ["--config", config, "--output", str(run_copy)]
    words += ["--set", f"runtime.local_disk={disk}"]
    digest = json.loads((run_copy / "dataset" / "manifest.json").read_text())["digest"]
    assert main(["evaluate", *words, "--force"]) == 0
    assert [path.name for path in disk.iterdir()] == [f"dataset-{digest[:12]}"]
    # Nothing but the manifest is read from the shared folder any more.
    for path in (run_copy / "dataset").iterdir():
        if path.name != "manifest.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert main(["evaluate", *words, "--force"]) == 0
    reports = [one / "report" / "report.json" for one in (run_copy, finished / "run")]
    assert reports[0].read_text() == reports[1].read_text()


def test_a_local_disk_that_cannot_be_written(
    run_copy: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "disk").write_text("a file where a folder should be")
    words = ["--config", config, "--output", str(run_copy), "--force"]
    assert main(["evaluate", *words, "--set", f"runtime.local_disk={tmp_path}/disk"]) == 4
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the dataset could not be copied there" in line
    assert line.endswith("set runtime.local_disk=null, or to a larger disk")
