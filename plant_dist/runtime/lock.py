"""One launch at a time works in a run folder: two would take away each other's half-written files.

The lock is the operating system's, on an open file, so that it ends with the process however that
ends. Must not know what is done meanwhile.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from plant_dist.artifacts import write_json
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger
from plant_dist.runtime.collectives import broadcast_object
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.launch import LOGS, launch_name

log = get_logger(__name__)
LOCK, HOLDER = ".lock", ".lock.json"


@contextmanager
def alone_in(folder: Path, context: RunContext) -> Iterator[None]:
    """Keep other launches out of a run folder while the block lasts. All ranks must call.

    On a disk without locks it only says so.

    Raises:
        ArtifactError: another launch works there; names it.
    """
    # Among the words of launches, so that a run that fails at once leaves nothing else.
    place = folder / LOGS
    lock = FileLock(place / LOCK)
    trouble = broadcast_object(context, _taken(lock, place) if context.is_main else None)
    if trouble is not None:
        raise ArtifactError(trouble)
    try:
        yield
    finally:
        if lock.is_locked:
            (place / HOLDER).unlink(missing_ok=True)
        lock.release()


def _taken(lock: FileLock, place: Path) -> str | None:
    """Take the lock; return what is wrong where that fails."""
    holder, folder = place / HOLDER, place.parent
    name = launch_name() or f"process {os.getpid()}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        write_json(holder, {"launch": name, "host": socket.gethostname(), "process": os.getpid()})
    except Timeout:
        other = _read(holder)
        # SLURM starts a job again when it is over, though a lost node's lock may outlast it.
        if _job(name) and _job(name) == _job(other.get("launch", "")):
            log.warning("%s is still locked by this job's launch before; going on", folder)
            return None
        return (
            f"{folder}: {other.get('launch', 'another launch')} works there, on "
            f"{other.get('host', 'some host')} as process {other.get('process', 'unknown')}; wait "
            "until it has ended, or name another run folder with --output"
        )
    except (OSError, NotImplementedError) as error:
        log.warning("%s cannot be locked (%s): start nothing else in it meanwhile", folder, error)
    return None


def _read(holder: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(holder.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _job(launch: str) -> str:
    return launch.rpartition(".")[0]
