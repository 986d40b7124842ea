"""How a run stands, read from its files alone: for people who watch, and for launchers.

A launch is judged by what its ranks recorded. The rank that failed by itself, and first, stands
first; one that was killed without a word comes next; those that failed because they lost another
come last. Nothing here needs torch, or the machine that the run is on.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from plant_dist.errors import ArtifactError, RankLost, StopRequested
from plant_dist.runtime.launch import (
    BY_SIGNAL,
    LOGS,
    STOP_SIGNALS,
    RankRecord,
    newest_launch,
    read_records,
)
from plant_dist.runtime.progress import Progress, read_progress

TAIL_LINES = 15
KILLED = 137  # 128 + SIGKILL, for a rank that left no word
STOPPED = StopRequested.exit_code
# Codes of ranks that another's end has brought down: by its silence, or by the launcher's signal.
FOLLOWED = (RankLost.exit_code, *(BY_SIGNAL + number for number in STOP_SIGNALS))
# In the order they are made; a run folder is known by any of these.
ARTIFACTS = ("dataset", "gains", "language_model", "ranker", "classifier", "report")


@dataclass(frozen=True)
class Verdict:
    """How a launch ended: the exit code that stands for all ranks, and what to tell of it."""

    code: int
    text: str


def judge_launch(run: Path, launch: str | None, launcher_code: int) -> Verdict:
    """Judge a launch that has ended.

    Args:
        launch: its name; None takes the newest.
        launcher_code: what the launcher ended with, which counts where no rank knows better.
    """
    folder = run / LOGS / launch if launch else newest_launch(run)
    records = read_records(folder) if folder else []
    if folder is None or not records:
        return Verdict(
            launcher_code,
            f"status: no rank of this launch came as far as {run / LOGS} (launcher's code "
            f"{launcher_code}); what it printed says why",
        )
    stops = [one for one in records if one.code == STOPPED]
    culprits = _culprits(records)
    # A stop is agreed by all ranks after they saved; one that then fell silent spoils nothing.
    if stops and not (culprits and culprits[0].code not in (None, *FOLLOWED)):
        return Verdict(STOPPED, f"status: {stops[0].message}")
    if not culprits:
        return Verdict(launcher_code, f"status: every rank ended well; logs in {folder}")
    return Verdict(
        KILLED if culprits[0].code is None else culprits[0].code, _failure(folder, culprits)
    )


def _culprits(records: Sequence[RankRecord]) -> list[RankRecord]:
    """Return the ranks that did not end well, the likeliest cause first."""
    amiss = [one for one in records if one.code not in (0, STOPPED)]
    return sorted(amiss, key=_guilt)


def _guilt(record: RankRecord) -> tuple[int, float, int]:
    # By itself, killed without a word, or only after another.
    kind = 2 if record.code in FOLLOWED else 1 if record.code is None else 0
    # Clocks of nodes agree to milliseconds; a cause is written before its connections close.
    return kind, record.ended or 0.0, record.rank


def _failure(folder: Path, culprits: Sequence[RankRecord]) -> str:
    first, *others = culprits
    lines = [f"status: {_who(first)}: {_said(first)}"]
    lines += [f"  then {_who(one)}: {_said(one)}" for one in others[:3]]
    if len(others) > 3:
        lines.append(f"  and {len(others) - 3} more ranks")
    for name in (f"rank-{first.rank}.log", f"rank-{first.rank}.out"):
        tail = _tail(folder / name)
        if tail:
            lines += [f"last lines of {folder / name}:", *(f"  | {line}" for line in tail)]
    return "\n".join(lines)


def _who(record: RankRecord) -> str:
    return f"rank {record.rank} on {record.node}"


def _said(record: RankRecord) -> str:
    if record.code is None:
        return "ended without a word (killed, perhaps out of memory)"
    return f"{record.message or 'no message'} (code {record.code})"


def _tail(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []


def describe_run(run: Path) -> str:
    """Return what `plant-dist status RUN` prints.

    Raises:
        ArtifactError: the folder is not a run's.
    """
    made = [name for name in ARTIFACTS if (run / name / "manifest.json").is_file()]
    launch, progress = newest_launch(run), read_progress(run)
    if not made and launch is None and progress is None:
        raise ArtifactError(f"{run} holds no run; name the folder that a run wrote (runs/NAME)")
    records = read_records(launch) if launch else []
    rows = {
        "run": str(run),
        "state": _state(run, records, progress),
        "launch": _launch(launch, records),
        **(_training(progress) if progress else {}),
        "checkpoint": _checkpoint(run, progress),
        "artifacts": ", ".join(made) or "none yet",
        "logs": str(launch) if launch else "",
        "curves": f"tensorboard --logdir {run / 'tensorboard'}",
    }
    return "\n".join(f"{name:<12}{text}" for name, text in rows.items() if text)


def _state(run: Path, records: Sequence[RankRecord], progress: Progress | None) -> str:
    stage = f" ({progress.stage})" if progress else ""
    if not records:
        return f"not started{stage}"
    # Judged as soon as any rank has failed: the others only follow.
    failed = any(one.code not in (None, 0) for one in records)
    if not failed and any(one.code is None for one in records):
        return _running(records, progress)
    verdict = judge_launch(run, records[0].launch, 0)
    told = verdict.text.removeprefix("status: ")
    if verdict.code == 0:
        return f"ended well{stage}"
    if verdict.code == STOPPED:
        return f"stopped, run it again to go on{stage}: {told}"
    return f"failed{stage}: {told}"


def _running(records: Sequence[RankRecord], progress: Progress | None) -> str:
    gone = [one for one in records if one.code is None and _is_gone(one)]
    if gone:
        return f"failed: {_who(gone[0])} ended without a word (killed, perhaps out of memory)"
    began = min(one.began for one in records)
    told = max(began, progress.updated if progress else 0.0)
    stage = f": {progress.stage}" if progress else ""
    return f"running{stage}, last news {_ago(told)}"


def _is_gone(record: RankRecord) -> bool:
    """True where the process can be looked for, and is not there."""
    if record.node != socket.gethostname():
        return False
    try:
        os.kill(record.process, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        # Somebody else's process, but a process.
        return False
    return False


def _launch(launch: Path | None, records: Sequence[RankRecord]) -> str:
    if launch is None or not records:
        return ""
    nodes = list(dict.fromkeys(one.node for one in records))
    count = records[0].world
    where = f"{count} process{'es' if count > 1 else ''} on {', '.join(nodes)}"
    slurm = "".join(f", SLURM {word} {value}" for word, value in records[0].slurm.items())
    return f"{launch.name}: {where}, began {_ago(min(one.began for one in records))}{slurm}"


def _training(progress: Progress) -> dict[str, str]:
    if not progress.total_steps:
        return {}
    share = 100 * progress.step / progress.total_steps
    step = f"{progress.step} of {progress.total_steps} ({share:.0f} %), epoch {progress.epoch:.2f}"
    rows = {"step": step}
    if progress.seconds_left:
        rows["time left"] = _span(progress.seconds_left)
    if progress.loss is not None:
        speed = progress.documents_per_second or 0.0
        rows["loss"] = f"{progress.loss:.4f}, {speed:.1f} documents/s"
    if progress.validation:
        rows["validation"] = f"step {progress.validated_step}: {_figures(progress.validation)}"
    if progress.best and progress.best_step != progress.validated_step:
        rows["best"] = f"step {progress.best_step}: {_figures(progress.best)}"
    return rows


def _figures(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in list(metrics.items())[:8])


def _checkpoint(run: Path, progress: Progress | None) -> str:
    """Return the folder that the stage's pointer names, and its age."""
    if progress is None:
        return ""
    pointer = run / "checkpoints" / progress.stage / "latest"
    try:
        folder = pointer.parent / pointer.read_text(encoding="utf-8").strip()
        return f"{folder}, saved {_ago(pointer.stat().st_mtime)}"
    except OSError:
        return "none: the artifact is made" if progress.made else "none yet"


def _ago(moment: float) -> str:
    return f"{_span(max(0.0, time.time() - moment))} ago"


def _span(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
