"""How far a run has come, in one small file that anyone may read while it runs.

`RUN/progress.json` is written by rank 0 alone and replaced whole. Nothing depends on it but people:
what cannot be written is left unwritten.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from plant_dist.runtime.launch import replace_json

PROGRESS = "progress.json"


@dataclass(frozen=True)
class Progress:
    """Where a run is.

    Attributes:
        stage: the stage in work, or the last one made. made: its artifact is there.
        step, total_steps: of the stage's training; 0 where it does not train.
        epoch: epochs done, with fractions.
        seconds_left: until the last step at the pace of this launch; None before it has one.
        loss, documents_per_second: of the last report.
        validated_step, validation: the last validation; best_step, best: the best so far.
        updated: seconds since the epoch.
    """

    stage: str
    made: bool = False
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    seconds_left: float | None = None
    loss: float | None = None
    documents_per_second: float | None = None
    validated_step: int | None = None
    validation: Mapping[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best: Mapping[str, float] = field(default_factory=dict)
    updated: float = field(default_factory=time.time)


def write_progress(run: Path, progress: Progress) -> None:
    """Replace a run's progress file, as far as the disk lets us."""
    with suppress(OSError):
        replace_json(run / PROGRESS, asdict(progress))


def read_progress(run: Path) -> Progress | None:
    """Return a run's progress; None where there is no readable file."""
    try:
        return Progress(**json.loads((run / PROGRESS).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
