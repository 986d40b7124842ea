"""Processes that count: an ordered map that keeps only a few tasks in flight.

Knows processes; must not know what they compute. Workers are spawned, not forked: the parent may
already run threads (PyTorch, tokenizers), and forking under them can deadlock.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from plant_dist.errors import RuntimeSetupError

T = TypeVar("T")
R = TypeVar("R")


def available_cores() -> int:
    """Cores that this process may run on."""
    # What SLURM or a container gave to this process, which may be less than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def counting_pool(workers: int) -> Iterator[Executor | None]:
    """Processes to count in, ended on leaving; None, meaning this very process, for one worker."""
    if workers <= 1:
        yield None
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        try:
            yield pool
        except BaseException:
            # What is queued is dropped, since nobody is left to take the results.
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], pool: Executor | None, in_flight: int
) -> Iterator[R]:
    """Results of `function` in the order of `items`, computed in the pool's processes.

    Args:
        function: importable by name in a new process; its argument and result travel between
            processes.
        pool: from `counting_pool`.
        in_flight: tasks submitted before the first result is awaited; a long stream of items
            never piles up in memory.

    Raises:
        RuntimeSetupError: a process was killed, most often for want of memory.
    """
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= in_flight:
                # The oldest first: the order is kept, though others may be ready before it.
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenExecutor as error:
        raise RuntimeSetupError(
            "mig: a counting process was killed, most likely for want of memory; lower "
            "mig.workers or mig.block_labels"
        ) from error
