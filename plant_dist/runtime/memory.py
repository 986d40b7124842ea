"""How much memory a process may still take: on its device, and on its host.

A host is shared by its ranks, and a job may be allowed less of it than there is. Knows nothing of
what the memory is for.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from plant_dist.runtime.collectives import gather_objects
from plant_dist.runtime.context import RunContext

# Limit and use of a control group, in versions 2 and 1 of the kernel's interface.
_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def free_bytes(context: RunContext) -> float:
    """Return the memory that a process may count on where it computes. All ranks must call."""
    if context.device.type == "cuda":
        return float(torch.cuda.mem_get_info(context.device)[0])
    return free_host_bytes(context)


def free_host_bytes(context: RunContext) -> float:
    """Return the host memory that a process may count on. All ranks must call."""
    # Ranks on other machines have memory of their own, but are as many on each.
    ranks = max(gather_objects(context, context.local_rank)) + 1
    return min([float(psutil.virtual_memory().available), *rooms()]) / ranks


def rooms(
    membership: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")
) -> Iterator[float]:
    """Yield what is left in each control group of this process that has a limit, in bytes.

    A scheduler kills a job that takes more than it asked for (`--mem`), whatever the node has.
    """
    with suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, inside = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root = top / "memory" if controllers else top
            place = root / inside.lstrip("/")
            # A limit binds all groups below it.
            for folder in (place, *place.parents):
                yield from _room(folder)
                if folder == root:
                    break


def _room(folder: Path) -> Iterator[float]:
    for limit, used in _FILES:
        # The topmost group has no limit, nor any group that says "max".
        with suppress(OSError, ValueError):
            most = int((folder / limit).read_text(encoding="utf-8"))
            left = most - int((folder / used).read_text(encoding="utf-8")) + _reclaimable(folder)
            yield float(max(0, left))


def _reclaimable(folder: Path) -> int:
    """Return the bytes of files kept in memory, which the kernel lets go of when asked for more."""
    lines = (folder / "memory.stat").read_text(encoding="utf-8").splitlines()
    found = dict(line.split() for line in lines)
    return int(found.get("inactive_file", 0))
