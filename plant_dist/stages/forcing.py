"""What `--force` asks for, kept in the run folder until it is done.

    forced/STAGE    the stage's artifact counts for nothing; nor do its checkpoints, until it begins
    forced/launch   who asked

So that a job that SLURM starts again with the same words goes on with what it has begun, instead of
beginning anew each time, and a run that failed early has lost neither artifacts nor checkpoints.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

FOLDER, LAUNCH, BEGUN = "forced", "launch", "begun"


def ask(run: Path, stages: Iterable[str], launch: str | None) -> None:
    """Have stages start from nothing. For one rank.

    Args: launch: the launcher's name of this start, `JOB.RESTART`; where the same job has asked
        before, what is left of its request stands. None asks anew.
    """
    folder = run / FOLDER
    job = (launch or "").rpartition(".")[0]
    asked = folder / LAUNCH
    if job and asked.is_file() and asked.read_text(encoding="utf-8") == job:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for stage in stages:
        (folder / stage).write_text("", encoding="utf-8")
    # Last: killed before, it is asked again.
    asked.write_text(job, encoding="utf-8")


def is_forced(run: Path, stage: str) -> bool:
    """Return whether a stage's artifact counts for nothing."""
    return (run / FOLDER / stage).is_file()


def begins_anew(run: Path, stage: str) -> bool:
    """Return whether its checkpoints count for nothing either."""
    marker = run / FOLDER / stage
    return marker.is_file() and marker.read_text(encoding="utf-8") != BEGUN


def begin_stage(run: Path, stage: str, checkpoints: Path) -> None:
    """Drop what a stage that begins anew would go on from. For one rank."""
    if begins_anew(run, stage):
        shutil.rmtree(checkpoints, ignore_errors=True)
        (run / FOLDER / stage).write_text(BEGUN, encoding="utf-8")


def stage_made(run: Path, stage: str) -> None:
    """Note that the artifact was made. For one rank."""
    (run / FOLDER / stage).unlink(missing_ok=True)
