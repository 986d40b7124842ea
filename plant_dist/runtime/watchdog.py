"""A rank that hangs ends the job: noticed within a configured time, and named on every rank.

Collectives wait in compiled code, where nothing can interrupt them, for as long as the longest
legitimate wait. So a thread looks on. Where its rank has made no step for too long, it writes down
where the rank stands, and in which collective it waits if it does; gives the other ranks a moment
to do so as well; and ends the process. Ranks that wait name those that do not. Knows no training.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NamedTuple

from plant_dist.errors import RankLost, TrainingError
from plant_dist.logs import get_logger
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.launch import end_process, replace_json

log = get_logger(__name__)

MOMENT_SECONDS = 5.0  # for the other ranks to notice the same; a quarter of the limit if shorter
# Files in which a process that waits for others stands.
_WAITING = ("distributed_c10d.py", "reducer.py", "deepspeed/comm/")
_OURS = "plant_dist"


class Stand(NamedTuple):
    """Where a rank is.

    Attributes:
        rank, step: of the training.
        collective: what it waits in; empty where it computes.
        place: file, line and function of the innermost frame that is not torch's.
    """

    rank: int
    step: int
    collective: str
    place: str


class Watchdog:
    """Watches the main thread of a rank; a context. At world 1 there is nobody to wait for.

    Args:
        context: the place of this process.
        folder: on a disk that all ranks share; files are written when something hangs only.
        timeout_seconds: the longest that a step may take; None watches nothing.
        end: what ends the process, given a code and a line.
    """

    def __init__(
        self, context: RunContext, folder: Path, timeout_seconds: float | None,
        end: Callable[[int, str], None] = end_process,
    ) -> None:  # fmt: skip
        self.context, self.folder, self.timeout_seconds, self._end = (
            context, folder, timeout_seconds, end
        )  # fmt: skip
        self._step, self._beaten, self._paused = 0, time.monotonic(), 0
        self._stop = threading.Event()
        self._watched = threading.get_ident()

    def __enter__(self) -> Watchdog:
        if self.context.world > 1 and self.timeout_seconds is not None:
            for stale in self.folder.glob(f".hangs-{self.context.rank}.json"):
                stale.unlink()
            self._beaten = time.monotonic()
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def beat(self, step: int) -> None:
        """Say that a step is done."""
        self._step, self._beaten = step, time.monotonic()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Look away: what the block does may take as long as it likes, such as a validation."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1
            self._beaten = time.monotonic()

    def _watch(self) -> None:
        assert self.timeout_seconds is not None  # or there would be no thread
        while not self._stop.wait(min(1.0, self.timeout_seconds / 4)):
            silent = time.monotonic() - self._beaten
            if not self._paused and silent > self.timeout_seconds:
                self._report()
                return

    def _report(self) -> None:
        frame = sys._current_frames().get(self._watched)
        if frame is None:
            return
        mine = where(frame, self.context.rank, self._step + 1)
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            replace_json(self.folder / f".hangs-{mine.rank}.json", mine._asdict())
        assert self.timeout_seconds is not None
        # Not `Event.wait`: a step that ends now comes too late, others may have given up.
        time.sleep(min(MOMENT_SECONDS, self.timeout_seconds / 4))
        code, line = verdict(mine, self._others(), self.context.world, self.timeout_seconds)
        log.error("%s\n%s", line, "".join(traceback.format_stack(frame)).rstrip())
        self._end(code, line)

    def _others(self) -> list[Stand]:
        found = []
        for rank in range(self.context.world):
            with suppress(OSError, ValueError, TypeError):
                text = (self.folder / f".hangs-{rank}.json").read_text(encoding="utf-8")
                found.append(Stand(**json.loads(text)))
        return [one for one in found if one.rank != self.context.rank]


def where(frame: FrameType, rank: int, step: int) -> Stand:
    """Return where a thread stands, told by its stack."""
    stack = traceback.extract_stack(frame)
    waiting = [one for one in stack if any(part in one.filename for part in _WAITING)]
    collective = ""
    if waiting:
        collective = waiting[0].name if waiting[0].name != "wrapper" else waiting[-1].name
    elif stack[-1].name == "_engine_run_backward":
        # DDP exchanges gradients inside the backward pass, in compiled code.
        collective = "all_reduce of gradients (backward)"
    ours = [one for one in stack if f"/{_OURS}/" in one.filename.replace("\\", "/")] or stack
    seen = ours[-1] if collective else stack[-1]
    place = f"{Path(seen.filename).name}:{seen.lineno} {seen.name}"
    return Stand(rank, step, collective, place)


def verdict(mine: Stand, others: Sequence[Stand], world: int, seconds: float) -> tuple[int, str]:
    """Return the exit code of a rank that has made no step, and the line that names who hangs."""
    every = sorted([mine, *others])
    silent = sorted(set(range(world)) - {one.rank for one in every})
    hang = [f"rank {one.rank} at {one.place}" for one in every if not one.collective]
    hang += [f"rank {rank} (says nothing)" for rank in silent]
    wait = [f"rank {one.rank} in {one.collective} ({one.place})" for one in every if one.collective]
    # All wait: they are in unlike collectives, or the network has lost something.
    line = (
        f"no step for {seconds:g} s, at step {mine.step}; "
        + (f"hangs: {', '.join(hang)}" if hang else "no rank computes: all wait for each other")
        + (f"; waits: {', '.join(wait)}" if wait else "")
        + "; the last checkpoint is whole, start again to go on; if steps may take so long, raise "
        "runtime.hang_seconds"
    )
    return (RankLost if mine.collective else TrainingError).exit_code, line
