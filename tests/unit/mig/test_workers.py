"""The ordered map: order, bounded work in flight, and the error for a process that dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from plant_dist.errors import RuntimeSetupError
from plant_dist.mig.workers import available_cores, counting_pool, ordered_map


def die(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_keep_the_order_and_few_tasks_are_in_flight() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(-9, 0):
            taken.append(number)
            yield number

    with counting_pool(2) as pool:
        results = ordered_map(abs, numbers(), pool, in_flight=3)
        assert next(results) == 9
        assert len(taken) == 3
        assert list(results) == [8, 7, 6, 5, 4, 3, 2, 1]


def test_a_killed_process_is_reported_with_the_remedy() -> None:
    with pytest.raises(RuntimeSetupError, match=r"lower mig\.workers"):
        with counting_pool(2) as pool:
            list(ordered_map(die, [1, 2, 3], pool, in_flight=2))


def test_one_worker_is_this_process() -> None:
    with counting_pool(1) as pool:
        assert list(ordered_map(lambda _: os.getpid(), [0, 1], pool, 2)) == [os.getpid()] * 2
    assert available_cores() >= 1
