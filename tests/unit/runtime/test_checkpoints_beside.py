"""Checkpoints that are written by a thread while steps go on changing what they hold."""

from __future__ import annotations

import logging
import os
import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from saved_state import assert_same, flat, made, step

from plant_dist.errors import ArtifactError
from plant_dist.runtime import checkpoint, checkpoint_files
from plant_dist.runtime.checkpoint import Checkpoints
from plant_dist.runtime.context import RunContext


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Writing waits until it is set."""
    opened, write = threading.Event(), checkpoint_files.write_pieces

    def later(*arguments: Any) -> list[Path]:
        assert opened.wait(60)
        return write(*arguments)

    monkeypatch.setattr(checkpoint_files, "write_pieces", later)
    return opened


@contextmanager
def full_disk() -> Iterator[None]:
    """The kernel refuses to let a file grow, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


def wait_until_written(checkpoints: Checkpoints) -> None:
    while checkpoints.writing:
        threading.Event().wait(0.001)


def test_it_holds_the_step_that_was_saved_and_gets_its_name_when_it_is_whole(
    tmp_path: Path, gate: threading.Event
) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), beside="always")
    state = made(0)
    step(state)
    expected = flat(state)
    folder = checkpoints.save(state, {"step": 1}, 1, best=1, wait=False)
    for _ in range(3):
        step(state)
        checkpoints.poll()
        assert checkpoints.writing
        assert checkpoints.latest() is None
        assert not folder.exists()
    gate.set()
    wait_until_written(checkpoints)
    # Written, and not yet named: that is for a boundary of steps.
    assert checkpoints.latest() is None
    checkpoints.poll()
    assert checkpoints.latest() == checkpoints.best() == folder
    other = made(1)
    assert Checkpoints(tmp_path, RunContext()).load(other) == {"step": 1}
    assert_same(flat(other), expected)


def test_the_next_one_waits_for_it(tmp_path: Path, gate: threading.Event) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), keep=1, beside="always")
    state = made(0)
    step(state)
    checkpoints.save(state, {"step": 1}, 1, wait=False)
    step(state)
    threading.Timer(0.05, gate.set).start()
    checkpoints.save(state, {"step": 2}, 2, wait=False)
    assert checkpoints.latest() == checkpoints.path(1)
    checkpoints.finish()
    assert checkpoints.latest() == checkpoints.path(2)
    # Older ones go when the new one has its name.
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000002"]


def test_a_full_disk_is_told_at_the_next_boundary_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), beside="always")
    state = made(0)
    checkpoints.save(state, {"step": 1}, 1)
    with full_disk():
        checkpoints.save(state, {"step": 2}, 2, wait=False)
        wait_until_written(checkpoints)
    with pytest.raises(ArtifactError, match=r"step-00000002 cannot be written .*free some space"):
        checkpoints.poll()
    assert sorted(os.listdir(tmp_path)) == ["latest", "step-00000001"]
    assert checkpoints.latest() == checkpoints.path(1)
    # Nothing of it hangs over what comes after.
    checkpoints.poll()
    checkpoints.save(state, {"step": 3}, 3, wait=False)
    checkpoints.finish()
    assert checkpoints.latest() == checkpoints.path(3)


def test_one_process_that_fails_otherwise_keeps_what_it_was_writing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), beside="always")
    checkpoints.save(made(0), {"step": 1}, 1, wait=False)
    checkpoints.abandon()
    assert checkpoints.latest() == checkpoints.path(1)


def test_a_rank_that_fails_otherwise_speaks_to_nobody_and_leaves_nothing(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), beside="always")
    checkpoints.save(made(0), {"step": 1}, 1, wait=False)
    # There is no other rank to answer: a collective would raise.
    checkpoints.context = RunContext(world=2)
    checkpoints.abandon()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("beside", "free"), [("never", 1e12), ("auto", 10.0)])
def test_training_waits_where_it_is_told_to_or_a_copy_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    beside: str, free: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(checkpoint, "free_host_bytes", lambda context: free)
    checkpoints = Checkpoints(tmp_path, RunContext(), beside=beside)
    logging.getLogger("plant_dist").propagate = True
    with caplog.at_level(logging.WARNING):
        checkpoints.save(made(0), {"step": 1}, 1, wait=False)
    assert not checkpoints.writing
    assert checkpoints.latest() == checkpoints.path(1)
    assert ("training waits" in caplog.text) == (beside == "auto")
