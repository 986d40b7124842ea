"""One launch at a time in a run folder; what a killed one or a disk without locks changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from plant_dist.errors import ArtifactError
from plant_dist.runtime import lock
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.lock import alone_in

HOLDS = """
import sys, time
from pathlib import Path
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.lock import alone_in
with alone_in(Path(sys.argv[1]), RunContext()):
    print("held", flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_leaves_nothing_when_it_is_killed(tmp_path: Path) -> None:
    named = {**os.environ, "PLANT_LAUNCH": "slurm-7.0"}
    other = subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], env=named,
                             stdout=subprocess.PIPE, text=True)  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ArtifactError, match=rf"slurm-7.0 works there, on .* process {other.pid}"):
        with alone_in(tmp_path, RunContext()):
            pass
    other.send_signal(signal.SIGKILL)
    other.wait()
    with alone_in(tmp_path, RunContext()), pytest.raises(ArtifactError):
        with alone_in(tmp_path, RunContext()):
            pass
    with alone_in(tmp_path, RunContext()):
        pass


def test_a_job_goes_on_though_the_lock_of_a_lost_node_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PLANT_LAUNCH", "slurm-7.0")
    with alone_in(tmp_path, RunContext()):
        monkeypatch.setenv("PLANT_LAUNCH", "slurm-7.1")
        with alone_in(tmp_path, RunContext()):
            assert "still locked by this job's launch before; going on" in caplog.text
        monkeypatch.setenv("PLANT_LAUNCH", "slurm-8.0")
        with pytest.raises(ArtifactError, match=r"slurm-7\.0 works there"):
            with alone_in(tmp_path, RunContext()):
                pass


def test_a_disk_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(self: object, timeout: float) -> None:
        raise NotImplementedError("no flock here")

    monkeypatch.setattr(lock.FileLock, "acquire", none)
    with alone_in(tmp_path, RunContext()):
        assert "cannot be locked (no flock here): start nothing else in it" in caplog.text
