"""What `--force` drops, and what a job that is started again with the same words goes on with."""

from __future__ import annotations

from pathlib import Path

from plant_dist.stages import forcing

STAGES = ("prepare", "train")


def checkpoints(run: Path) -> Path:
    folder = run / "checkpoints" / "train"
    (folder / "step-1").mkdir(parents=True, exist_ok=True)
    return folder


def begin(run: Path) -> Path:
    folder = checkpoints(run)
    forcing.begin_stage(run, "train", folder)
    return folder


def test_a_run_without_it_keeps_everything(tmp_path: Path) -> None:
    assert not forcing.is_forced(tmp_path, "train")
    assert begin(tmp_path).exists()


def test_checkpoints_are_dropped_once_when_their_stage_begins(tmp_path: Path) -> None:
    folder = checkpoints(tmp_path)
    forcing.ask(tmp_path, STAGES, None)
    assert folder.exists()
    assert forcing.begins_anew(tmp_path, "train")
    assert not begin(tmp_path).exists()
    assert forcing.is_forced(tmp_path, "train")
    # Those there are now are of the forced run itself.
    assert begin(tmp_path).exists()
    assert not forcing.begins_anew(tmp_path, "train")


def test_a_job_started_again_asks_for_nothing_new(tmp_path: Path) -> None:
    forcing.ask(tmp_path, STAGES, "slurm-7.0")
    forcing.stage_made(tmp_path, "prepare")
    begin(tmp_path)
    forcing.ask(tmp_path, STAGES, "slurm-7.1")
    assert not forcing.is_forced(tmp_path, "prepare")
    assert forcing.is_forced(tmp_path, "train")
    assert not forcing.begins_anew(tmp_path, "train")
    # Another job means it, and so does a person who says it again.
    for launch in ("slurm-8.0", None, None):
        forcing.ask(tmp_path, STAGES, launch)
        assert forcing.is_forced(tmp_path, "prepare")
        assert forcing.begins_anew(tmp_path, "train")
        forcing.stage_made(tmp_path, "prepare")
