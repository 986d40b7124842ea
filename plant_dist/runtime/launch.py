"""What each rank of a launch leaves behind: a log file, and a record of how it ended.

`RUN/logs/LAUNCH/rank-3.log` holds a rank's lines with date, rank and node, and the traceback of
what ended it; `rank-3.json` says where it ran and with which code and words it left. A rank that
was killed leaves a record without an end. Ranks write only their own files, so nothing here is a
collective; what the files add up to is judged in `status.py`. Light to import: the command line
needs it before it knows whether torch is wanted.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from plant_dist import logs
from plant_dist.artifacts import write_json
from plant_dist.runtime.failures import explain

LOGS = "logs"
# Set by launchers/ and slurm/: one name for all ranks, before any of them has met another.
LAUNCH_NAME = "PLANT_LAUNCH"
# What schedulers and launchers end a process with, beside SIGKILL.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
BY_SIGNAL = 128  # a shell's code for a process ended by a signal is this and its number
# What tells a scheduler's job from another, in the order of their names in a log line.
_SLURM = {"SLURM_JOB_ID": "job", "SLURM_RESTART_COUNT": "restart"}


@dataclass(frozen=True)
class RankRecord:
    """How one rank of a launch fared.

    Attributes:
        launch: the launch's name. node, process: the host and process id it ran as.
        slurm: job and restart count, where SLURM started it.
        began, ended: seconds since the epoch; `ended` is None while it runs, and if it was killed.
        code: exit code, None as `ended`.
        message: the line that explains the code; empty for 0.
    """

    launch: str
    rank: int
    world: int
    node: str
    process: int
    began: float
    slurm: Mapping[str, str]
    ended: float | None = None
    code: int | None = None
    message: str = ""


# Journals that are open, for who ends the process without coming back to them.
_OPEN: set[Journal] = set()


class Journal:
    """Where one rank writes how it fares. Until it is opened, and after its end, it is silent.

    Args:
        command: what runs, for the line that explains an error.
    """

    def __init__(self, command: str = "") -> None:
        self.failure: BaseException | None = None
        self._command = command
        self._record: RankRecord | None = None
        self._folder = Path()
        self._handler: logging.Handler | None = None
        self._before: dict[int, Any] = {}

    @property
    def opened(self) -> bool:
        """True between `open` and `end`."""
        return self._record is not None

    def open(self, run: Path, launch: str, rank: int, world: int) -> None:
        """Begin the log file and the record of a rank.

        A place that cannot be written is passed over: the run itself will say so where it matters.

        Args:
            run: the run folder.
            launch: the same on all ranks, and of no earlier launch of the run.
        """
        folder, node = run / LOGS / launch, socket.gethostname()
        slurm = {word: os.environ[name] for name, word in _SLURM.items() if name in os.environ}
        record = RankRecord(launch, rank, world, node, os.getpid(), time.time(), slurm)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handler = logs.also_to(folder / f"rank-{rank}.log", rank, node)
        except OSError:
            return
        self._folder, self._record = folder, record
        _OPEN.add(self)
        self._write()
        self._listen()
        where = "".join(f", SLURM {word} {value}" for word, value in slurm.items())
        self._tell(f"launch {launch}: rank {rank} of {world} on {node}{where}")

    def end(self, code: int, message: str = "", error: BaseException | None = None) -> None:
        """Say how the rank ended.

        Args:
            error: its traceback goes into the log file, where nobody has to ask for it again.
        """
        _OPEN.discard(self)
        if self._record is None or self._handler is None:
            return
        if error is not None:
            self._tell("".join(traceback.format_exception(error)).rstrip())
        self._record = replace(self._record, ended=time.time(), code=code, message=message)
        self._write()
        logs.no_longer_to(self._handler)
        self._record = self._handler = None
        # A thread that ends the process cannot, and need not, put handlers back.
        if threading.current_thread() is threading.main_thread():
            for number, before in self._before.items():
                signal.signal(number, before)
            self._before = {}

    def _listen(self) -> None:
        """Record a signal that ends the process; a training loop puts its own handlers on top."""
        # Python takes signals in its main thread only; a program around us may have its own way.
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._before[number] = signal.signal(number, self._ended_by)

    def _ended_by(self, number: int, frame: FrameType | None) -> None:
        # Processes forked for reading have inherited this handler, but the record is not theirs.
        if self._record is not None and self._record.process == os.getpid():
            name = signal.Signals(number).name
            code = BY_SIGNAL + number
            message = f"ended by {name} outside of training, with nothing to save"
            if self.failure is not None:
                # A launcher ends the ranks that are left while they still clear up after the first.
                code, message = explain(self.failure, self._command)
            self.end(code, message, self.failure)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def _tell(self, text: str) -> None:
        """Write into the log file alone: the console has what it needs from elsewhere."""
        assert self._handler is not None
        self._handler.handle(logging.LogRecord(__name__, logging.INFO, "", 0, text, None, None))

    def _write(self) -> None:
        assert self._record is not None
        with suppress(OSError):
            replace_json(self._folder / f"rank-{self._record.rank}.json", asdict(self._record))


def note_failure(error: BaseException) -> None:
    """Note what ends this process: a signal that comes before it has ended is not the reason."""
    for journal in _OPEN:
        journal.failure = error


def end_process(code: int, message: str) -> None:
    """End this process at once, recorded, from any thread: the main one may wait for ever."""
    for journal in list(_OPEN):
        journal.end(code, message)
    print(f"plant-dist: {message}", file=sys.stderr, flush=True)
    # Not `sys.exit`, which ends a thread only.
    os._exit(code)


def replace_json(path: Path, content: object) -> None:
    """Write JSON so that a reader finds the old or the new content; not flushed to disk."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        write_json(fresh, content)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def launch_name() -> str | None:
    """Return the name that the launcher gave this launch, None where there is none."""
    return os.environ.get(LAUNCH_NAME) or None


def name_by_time() -> str:
    """Return a name for a launch that has none; names sort as the launches began."""
    return time.strftime("%Y%m%d-%H%M%S")


def read_records(folder: Path) -> list[RankRecord]:
    """Return the records of a launch's ranks, in rank order; unreadable ones are left out."""
    found = []
    for path in folder.glob("rank-*.json"):
        with suppress(OSError, ValueError, TypeError):
            found.append(RankRecord(**json.loads(path.read_text(encoding="utf-8"))))
    return sorted(found, key=lambda record: record.rank)


def newest_launch(run: Path) -> Path | None:
    """Return the log folder of a run's last launch: the one whose rank began last."""
    began = {
        folder: max(record.began for record in records)
        for folder in (run / LOGS).glob("*")
        if (records := read_records(folder))
    }
    return max(began, key=lambda folder: began[folder]) if began else None
