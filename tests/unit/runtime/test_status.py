"""What a launch's records add up to, and what `status` prints of a run."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plant_dist.artifacts import write_json
from plant_dist.cli import main
from plant_dist.errors import ArtifactError
from plant_dist.runtime.launch import RankRecord
from plant_dist.runtime.progress import Progress, read_progress, write_progress
from plant_dist.runtime.status import _culprits, describe_run, judge_launch

NOW = time.time()


def record(rank: int, code: int | None, ended: float = 0.0, message: str = "") -> RankRecord:
    return RankRecord(
        launch="first", rank=rank, world=2, node=f"n{rank}", process=1, began=NOW - 60, slurm={},
        ended=None if code is None else NOW + ended, code=code, message=message,
    )  # fmt: skip


def written(run: Path, *records: RankRecord) -> Path:
    folder = run / "logs" / "first"
    folder.mkdir(parents=True)
    for one in records:
        write_json(folder / f"rank-{one.rank}.json", asdict(one))
    return run


@pytest.mark.parametrize(
    ("codes", "launcher", "expected"),
    [
        ((0, 0), 0, 0),
        ((75, 75), 1, 75),  # torchrun's 1 is not the program's
        ((75, None), 1, 75),  # killed by the launcher after all had saved
        ((75, 7), 1, 75),
        ((6, 7), 1, 6),
        ((7, 3), 1, 3),
        ((6, 75), 1, 6),
        ((7, None), 1, 137),  # the silent one was killed, the other only lost it
        ((None, None), 143, 137),
        ((7, 7), 1, 7),
        ((143, None), 1, 137),  # the launcher ended the first after the second was gone
        ((143, 4), 1, 4),
        ((138, 138), 1, 138),
        ((75, 143), 1, 75),
        ((0, 0), 9, 9),  # the ranks ended well, the launcher did not
    ],
)
def test_the_code_of_a_launch(
    tmp_path: Path, codes: tuple[int | None, ...], launcher: int, expected: int
) -> None:
    run = written(tmp_path, *(record(rank, code) for rank, code in enumerate(codes)))
    assert judge_launch(run, "first", launcher).code == expected


def test_the_first_of_two_failures_stands_first(tmp_path: Path) -> None:
    run = written(
        tmp_path, record(0, 6, ended=2.0, message="later"), record(1, 3, ended=1.0, message="first")
    )
    (run / "logs/first/rank-1.log").write_text("".join(f"line {i}\n" for i in range(30)))
    verdict = judge_launch(run, None, 1)
    lines = verdict.text.splitlines()
    assert verdict.code == 3
    assert lines[0] == "status: rank 1 on n1: first (code 3)"
    assert lines[1] == "  then rank 0 on n0: later (code 6)"
    assert lines[2].startswith("last lines of ")
    assert lines[3] == "  | line 15"
    assert lines[-1] == "  | line 29"


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1, 3, 6, 7, 70, 75, 143, None]), st.integers(0, 5)),
        max_size=8,
    )
)
def test_who_failed_by_itself_comes_before_who_followed(ends: list[tuple[int | None, int]]) -> None:
    records = [record(rank, code, ended) for rank, (code, ended) in enumerate(ends)]
    found = _culprits(records)
    assert {one.rank for one in found} == {
        rank for rank, (code, _) in enumerate(ends) if code not in (0, 75)
    }
    kinds = [{7: "followed", 143: "followed", None: "silent"}.get(one.code, "own") for one in found]
    order = ["own", "silent", "followed"]
    assert kinds == sorted(kinds, key=order.index)
    times = [one.ended for one in found if one.code not in (7, 143, None)]
    assert times == sorted(times, key=lambda ended: ended or 0.0)


def test_without_records_the_launcher_s_code_counts(tmp_path: Path) -> None:
    verdict = judge_launch(tmp_path, "unknown", 5)
    assert verdict.code == 5
    assert "no rank of this launch" in verdict.text


def test_a_run_in_training(tmp_path: Path) -> None:
    here = asdict(record(0, None)) | {"node": socket.gethostname(), "process": os.getpid()}
    run = written(tmp_path, RankRecord(**here), record(1, None))
    told = Progress(
        "train", step=30, total_steps=120, epoch=1.5, seconds_left=90.4, loss=0.25,
        documents_per_second=12.0, validated_step=20, validation={"map": 0.5},
        best_step=10, best={"map": 0.75},
    )  # fmt: skip
    write_progress(run, told)
    latest = run / "checkpoints" / "train" / "latest"
    latest.parent.mkdir(parents=True)
    latest.write_text("step-00000020\n")
    lines = dict(line.split(maxsplit=1) for line in describe_run(run).splitlines())
    assert lines["state"].startswith("running: train, last news 0:00:0")
    assert lines["launch"].startswith("first: 2 processes on ")
    assert lines["step"] == "30 of 120 (25 %), epoch 1.50"
    assert lines["time"] == "left   0:01:30"
    assert lines["loss"] == "0.2500, 12.0 documents/s"
    assert lines["validation"] == "step 20: map 0.5000"
    assert lines["best"] == "step 10: map 0.7500"
    assert lines["checkpoint"].startswith(f"{latest.parent}/step-00000020, saved 0:00:0")


def test_a_rank_that_is_gone_without_a_word(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    gone = asdict(record(0, None)) | {"node": socket.gethostname(), "process": child.pid}
    run = written(tmp_path, RankRecord(**gone))
    assert "failed: rank 0 on " in describe_run(run)
    assert "without a word" in describe_run(run)


def test_a_run_that_was_stopped_says_that_it_goes_on(tmp_path: Path) -> None:
    run = written(tmp_path, record(0, 75, message="saved in x"), record(1, 75))
    assert "stopped, run it again to go on: saved in x" in describe_run(run)


def test_a_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArtifactError, match="holds no run"):
        describe_run(tmp_path)
    assert main(["status", str(tmp_path)]) == 4
    assert main(["status"]) == 2
    assert "name a run folder" in capsys.readouterr().err


def test_progress_survives_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    write_progress(tmp_path / "run", Progress("train"))
    assert read_progress(tmp_path / "run") is None
    (tmp_path / "progress.json").write_text("{")
    assert read_progress(tmp_path) is None


def test_status_does_not_wait_for_torch(tmp_path: Path) -> None:
    run = written(tmp_path, record(0, 0))
    code = (
        "import sys; from plant_dist.cli import main; main(['status', sys.argv[1]]); "
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=True, capture_output=True)
