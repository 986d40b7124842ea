"""Where a stage reads the prepared dataset from: the run folder, or a copy on the own disk.

The copy is named by the dataset's digest, so that a machine never reads an old one, and one that is
there is not made again.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from plant_dist.artifacts import short, written_whole
from plant_dist.data.prepared import PreparedDataset
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.runtime.collectives import gather_objects
from plant_dist.stages.pipeline import Job, parent_manifest

log = get_logger(__name__)


def open_dataset(job: Job) -> PreparedDataset:
    """Open the run's dataset: its copy, where the config names a disk. All ranks must call.

    Raises:
        ArtifactError: there is no dataset, or a machine has no room for its copy.
    """
    shared, disk = job.artifact("dataset"), job.config.runtime.local_disk
    if disk is None:
        return PreparedDataset.load(shared)
    copy = Path(disk) / f"dataset-{short(parent_manifest('dataset', job).digest)}"
    trouble = None
    # One rank on each machine copies for all of them.
    if job.context.local_rank == 0 and not copy.exists():
        trouble = _copy(shared, copy)
    # A machine that failed alone would leave the others waiting in training.
    for one in gather_objects(job.context, trouble):
        if one is not None:
            raise ArtifactError(f"{one}; set runtime.local_disk=null, or to a larger disk")
    return PreparedDataset.load(copy)


def _copy(shared: Path, copy: Path) -> str | None:
    """Copy a folder whole or not at all; return what went wrong."""
    try:
        with written_whole(copy) as fresh:
            shutil.copytree(shared, fresh, dirs_exist_ok=True)
    except (ArtifactError, OSError) as error:
        return f"{copy}: the dataset could not be copied there ({error})"
    log.info("the dataset is copied to %s", copy)
    return None
