"""A hook that tells outsiders how far a training has come, for `plant-dist status`.

It changes nothing in the loop, and writes on the main rank only.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from plant_dist.runtime.progress import Progress, write_progress
from plant_dist.train.hooks import Hook, Loop, Report

SECONDS_BETWEEN = 2.0  # a report may come at every step; a file on a shared disk need not


class TellProgress(Hook):
    """Writes the progress file at reports, validations and the end.

    Args:
        run: the run folder.
        stage: the stage that trains.
    """

    def __init__(self, run: Path, stage: str) -> None:
        self._run, self._stage = run, stage
        self._report: Report | None = None
        self._validation: tuple[int, Mapping[str, float]] | None = None
        self._written = 0.0
        self._began, self._first_step = 0.0, 0

    def started(self, loop: Loop) -> None:
        """Begin to count: the pace is that of this launch, validations and checkpoints included."""
        self._began, self._first_step = time.monotonic(), loop.state.step
        self._tell(loop)

    def reported(self, loop: Loop, report: Report) -> None:
        """Tell, unless it was told just now."""
        self._report = report
        if loop.finished or time.monotonic() - self._written > SECONDS_BETWEEN:
            self._tell(loop)

    def validated(self, loop: Loop, metrics: Mapping[str, float]) -> None:
        """Tell what was measured."""
        self._validation = (loop.state.step, dict(metrics))
        self._tell(loop)

    def closed(self, loop: Loop) -> None:
        """Tell where it ended."""
        self._tell(loop)

    def _tell(self, loop: Loop) -> None:
        if not loop.context.is_main:
            return
        state, report = loop.state, self._report
        step, metrics = self._validation or (state.validated_step, {})
        told = Progress(
            stage=self._stage,
            step=state.step,
            total_steps=loop.total_steps,
            epoch=loop.progress,
            seconds_left=self._seconds_left(loop),
            loss=report.loss if report else None,
            documents_per_second=report.documents_per_second if report else None,
            validated_step=step,
            validation=metrics,
            best_step=state.best_step,
            best=state.best_metrics,
        )
        write_progress(self._run, told)
        self._written = time.monotonic()

    def _seconds_left(self, loop: Loop) -> float | None:
        done = loop.state.step - self._first_step
        if done == 0:
            return None
        pace = (time.monotonic() - self._began) / done
        return 0.0 if loop.finished else pace * (loop.total_steps - loop.state.step)
