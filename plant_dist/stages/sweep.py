"""`plant-dist sweep`: one config that stands for many runs, and the table of what they reach.

Every variant (`sweep.variants`) on every size of the training split and every seed is a plain run
in a folder of its own below the sweep's; finished ones are not made again. A smaller training split
is drawn inside a larger one, and gains, ranker, priors and thresholds are made from it alone:
variants share these where their settings allow, sizes and seeds never.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from plant_dist.artifacts import read_manifest, written_whole
from plant_dist.config import Config, load_config, run_folder
from plant_dist.errors import ConfigError
from plant_dist.logs import get_logger
from plant_dist.metrics.curve import Measured, curve_table, write_curve
from plant_dist.runtime.collectives import barrier
from plant_dist.runtime.context import start_run
from plant_dist.runtime.lock import alone_in
from plant_dist.stages import ALL, Job, Stage, force, run_stage
from plant_dist.stages.pipeline import LANGUAGE_MODEL, RANKER, command_words

FOLDER = "sweep"
AS_IT_IS = "config"  # the only variant, where none is named
# What runs that differ only after them may take over from one another.
SHARED = ("dataset", "gains", LANGUAGE_MODEL, RANKER)
log = get_logger(__name__)


@dataclass(frozen=True)
class Point:
    """One run of a sweep.

    Attributes:
        documents: size of the training split; None for all of it.
        words: its settings, as `--set` takes them.
        folder: its run folder.
    """

    variant: str
    documents: int | None
    seed: int
    words: tuple[str, ...]
    folder: Path

    @property
    def finished(self) -> bool:
        """True where it has a report."""
        return read_manifest(self.folder / "report") is not None


def points_of(config: Config) -> list[Point]:
    """Return the runs of a sweep, in the order in which they are made: sizes, seeds, variants.

    The place in this list is a run's index in an array of jobs.
    """
    sweep, root = config.sweep, run_folder(config) / FOLDER
    sizes: list[int | None] = [*sorted(sweep.train_documents)]
    if sweep.all_documents or not sizes:
        sizes.append(None)
    points = []
    for size in sizes:
        for seed in sweep.seeds:
            # Neighbours differ in the variant alone, and share what does not depend on it.
            for name, settings in (sweep.variants or {AS_IT_IS: {}}).items():
                folder = root / f"{name}-{size or 'all'}" / f"seed{seed}"
                own = {**settings, "seed": seed, "data.train_documents": size}
                words = [f"{key}={json.dumps(value)}" for key, value in own.items()]
                points.append(Point(name, size, seed, tuple(words), folder))
    return points


def describe_sweep(config: Config) -> str:
    """Return what would be run, a line each: index, folder, whether it is finished, settings."""
    points = points_of(config)
    lines = [
        f"{index:>4}  {'done ' if point.finished else 'to do'}  {point.folder}  "
        f"{' '.join(point.words)}"
        for index, point in enumerate(points)
    ]
    return "\n".join([f"sweep    {config.name}: {len(points)} runs", *lines])


def sweep(
    job: Job, config_path: Path, overrides: Sequence[str], index: int | None = None,
    anew: bool = False,
) -> str:  # fmt: skip
    """Make the runs of a sweep that are not finished, and its table. All ranks must call.

    Args:
        job: of the sweep itself; says its folder and who the ranks are.
        config_path, overrides: what the config was read from; each run adds its settings.
        index: make this run alone.
        anew: make runs from nothing, also those that are finished.

    Returns:
        The table of all runs that are finished.

    Raises:
        ConfigError: there is no run of that index, or a variant has an impossible setting.
    """
    points = points_of(job.config)
    if index is not None and not 0 <= index < len(points):
        raise ConfigError(f"--index is {index}, but the sweep has runs 0 to {len(points) - 1}")
    chosen = points if index is None else [points[index]]
    # All configs before the first run: a slip in the last one should not cost a night.
    configs = [
        load_config(config_path, [*overrides, *point.words, f"output={point.folder}"])
        for point in chosen
    ]
    if anew:
        # All before the first: a job that is started again goes on with them.
        for config in configs:
            force(_stages(config), replace(job, config=config))
    for point, config in zip(chosen, configs, strict=True):
        if job.context.is_main:
            _borrow(point, points)
        barrier(job.context)
        words = command_words(config_path, (*overrides, *point.words), str(point.folder))
        # Of its own: a variant may have another seed, precision or kind of kernels.
        context = start_run(config.runtime, config.seed)
        with alone_in(point.folder, context):
            _make(Job(config, context, words), point)
    if not job.context.is_main:
        return ""
    measured = [_measured(point) for point in points if point.finished]
    folder = job.folder / FOLDER
    title = f"{job.config.name}: {len(measured)} of {len(points)} runs, test split, percent"
    paths = write_curve(folder, title, measured, job.config.sweep.metrics)
    table = curve_table(measured, job.config.sweep.metrics)
    return "\n".join([title, "", table, "", *map(str, paths)])


def _make(job: Job, point: Point) -> None:
    size = point.documents or "all"
    log.info("sweep: %s, %s documents, seed %d", point.variant, size, point.seed)
    for stage in _stages(job.config):
        run_stage(stage, job)


def _stages(config: Config) -> list[Stage]:
    return [stage for stage in ALL if stage.belongs(config)]


def _borrow(point: Point, points: Sequence[Point]) -> None:
    """Take over artifacts of another variant on the same documents; what does not fit is made anew.

    Artifacts are replaced whole and never written into, so that two runs may own one file.
    """
    for other in points:
        if other == point or (other.documents, other.seed) != (point.documents, point.seed):
            continue
        for name in SHARED:
            source, target = other.folder / name, point.folder / name
            if target.exists() or read_manifest(source) is None:
                continue
            # Another job of the array may replace it meanwhile; then this run makes its own.
            with suppress(FileNotFoundError), written_whole(target) as fresh:
                shutil.copytree(source, fresh, copy_function=_link, dirs_exist_ok=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copy2(source, target)


def _measured(point: Point) -> Measured:
    content = json.loads((point.folder / "report" / "report.json").read_text(encoding="utf-8"))
    found = content["systems"][content["system"]]
    return Measured(
        point.variant, found["definitions"]["train_documents"], point.seed, found["metrics"]
    )
