"""The watchdog: what a stack says, who is named, and two real processes of which one hangs."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from plant_dist.runtime.context import RunContext
from plant_dist.runtime.watchdog import Stand, Watchdog, verdict, where

WAITS = Stand(0, 8, "all_reduce of gradients (backward)", "engine.py:100 backward")
HANGS = Stand(1, 8, "", "lists.py:7 sleep")


def test_ranks_that_wait_name_the_one_that_computes() -> None:
    code, line = verdict(WAITS, [HANGS], 2, 60.0)
    assert code == 7
    assert line.startswith("no step for 60 s, at step 8; hangs: rank 1 at lists.py:7 sleep; ")
    assert "waits: rank 0 in all_reduce of gradients (backward) (engine.py:100 backward)" in line
    assert "\n" not in line
    # The one that hangs says so itself, with a code of its own, so that it is shown first.
    assert verdict(HANGS, [WAITS], 2, 60.0) == (6, line)


def test_a_rank_that_says_nothing_is_named() -> None:
    assert "hangs: rank 1 (says nothing), rank 3 (says nothing);" in verdict(
        WAITS, [WAITS._replace(rank=2)], 4, 60.0
    )[1]  # fmt: skip


def test_ranks_that_all_wait_are_said_to() -> None:
    code, line = verdict(WAITS, [WAITS._replace(rank=1, collective="barrier")], 2, 60.0)
    assert code == 7
    assert "no rank computes: all wait for each other; waits: rank 0 in all_reduce" in line
    assert "rank 1 in barrier" in line


def test_the_stack_of_a_thread_that_computes() -> None:
    stop = threading.Event()
    asleep = threading.Thread(target=lambda: stop.wait(30))
    asleep.start()
    assert asleep.ident is not None
    while (frame := sys._current_frames().get(asleep.ident)) is None:
        time.sleep(0.01)
    found = where(frame, rank=3, step=5)
    stop.set()
    asleep.join()
    assert (found.rank, found.step) == (3, 5)
    assert "threading.py" in found.place


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("how", ["silent", "beating", "paused"])
def test_it_ends_what_makes_no_step_and_nothing_else(tmp_path: Path, how: str, world: int) -> None:
    ended: list[tuple[int, str]] = []
    told = threading.Event()

    def end(code: int, line: str) -> None:
        ended.append((code, line))
        told.set()

    with Watchdog(RunContext(world=world), tmp_path, 0.2, end) as dog:
        if how == "paused":
            with dog.paused():
                assert not told.wait(1.0)
        elif how == "beating":
            for step in range(10):
                dog.beat(step)
                assert not told.wait(0.05)
        elif world > 1:
            assert told.wait(30.0)
            assert "hangs: rank 0 at" in ended[0][1]
            assert "rank 1 (says nothing)" in ended[0][1]
        else:
            # One process waits for nobody, and may take its time.
            assert not told.wait(1.0)
    assert bool(ended) == (how == "silent" and world > 1)
