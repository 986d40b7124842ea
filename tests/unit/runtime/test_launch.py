"""Rank logs and records: what is written, by whom, and that a full or closed place ends nothing."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plant_dist import logs
from plant_dist.errors import RankLost
from plant_dist.runtime.launch import Journal, newest_launch, read_records, replace_json


@pytest.fixture(autouse=True)
def own_logger() -> Iterator[None]:
    """Leave the package's logger as it was found."""
    logger = logging.getLogger(logs.ROOT)
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def opened(run: Path, rank: int = 0, world: int = 2, launch: str = "first") -> Journal:
    journal = Journal()
    journal.open(run, launch, rank, world)
    return journal


def test_a_rank_that_runs_has_a_record_without_an_end(tmp_path: Path) -> None:
    journal = opened(tmp_path, rank=1)
    [record] = read_records(tmp_path / "logs" / "first")
    assert (record.rank, record.world, record.code, record.ended) == (1, 2, None, None)
    assert (record.node, record.process) == (socket.gethostname(), os.getpid())
    journal.end(0)
    [record] = read_records(tmp_path / "logs" / "first")
    assert record.code == 0
    assert record.ended is not None
    assert record.ended >= record.began


def test_slurm_job_and_restart_are_recorded_and_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    logs.configure()
    opened(tmp_path).end(0)
    [record] = read_records(tmp_path / "logs" / "first")
    assert record.slurm == {"job": "12", "restart": "3"}
    assert "SLURM job 12, SLURM restart 3" in (tmp_path / "logs/first/rank-0.log").read_text()


def test_lines_carry_date_rank_and_node_on_every_rank(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(rank=1)
    journal = opened(tmp_path, rank=1)
    logs.get_logger("plant_dist.somewhere").info("heard only in the file")
    journal.end(0)
    line = (tmp_path / "logs/first/rank-1.log").read_text().splitlines()[-1]
    node = re.escape(socket.gethostname())
    stamp = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}"
    assert re.fullmatch(rf"{stamp} \[rank 1 {node}\] heard only in the file", line)
    assert capsys.readouterr().err == ""
    # Closed: what comes later is not of this launch.
    logs.get_logger("plant_dist.somewhere").info("later")
    assert "later" not in (tmp_path / "logs/first/rank-1.log").read_text()


def test_a_bar_that_is_not_shown_does_not_make_a_rank_speak(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(rank=1)
    for _ in logs.progress([1], "read", "documents", shown=False):
        logs.get_logger("plant_dist.somewhere").info("quiet")
    assert capsys.readouterr().err == ""


def test_the_traceback_of_an_error_stands_in_the_file_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure()
    journal = opened(tmp_path)
    capsys.readouterr()
    try:
        raise ZeroDivisionError("by nothing")
    except ZeroDivisionError as error:
        journal.end(70, "internal error", error)
    written = (tmp_path / "logs/first/rank-0.log").read_text()
    assert "Traceback (most recent call last):" in written
    assert written.rstrip().endswith("ZeroDivisionError: by nothing")
    assert capsys.readouterr().err == ""
    [record] = read_records(tmp_path / "logs" / "first")
    assert (record.code, record.message) == (70, "internal error")


def test_a_signal_outside_of_training_is_recorded_and_ends_the_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, time; from pathlib import Path\n"
        "from plant_dist.runtime.launch import Journal\n"
        "journal = Journal(); journal.open(Path(sys.argv[1]), 'first', 0, 1)\n"
        "reader, writer = os.pipe(); child = os.fork()\n"
        "if not child: os.write(writer, b'x'); time.sleep(60)\n"
        # A worker's end is not the rank's.
        "os.read(reader, 1); os.kill(child, signal.SIGTERM)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == f"{-signal.SIGTERM}\n"
    [record] = read_records(tmp_path / "logs" / "first")
    assert record.code is None
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == -signal.SIGUSR1
    [record] = read_records(tmp_path / "logs" / "first")
    assert record.code == 128 + signal.SIGUSR1
    assert record.message.startswith("ended by SIGUSR1 outside of training")


def test_a_signal_after_an_error_does_not_hide_it(tmp_path: Path) -> None:
    # torchrun ends the ranks that are left, which already know that they have lost one.
    code = (
        "import signal, sys, time; from pathlib import Path\n"
        "from plant_dist.runtime.launch import Journal, note_failure\n"
        "journal = Journal('train'); journal.open(Path(sys.argv[1]), 'first', 0, 1)\n"
        "try: raise RuntimeError('Connection closed by peer')\n"
        "except RuntimeError as error: note_failure(error)\n"
        "signal.raise_signal(signal.SIGTERM)\n"
    )
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert process.returncode == -signal.SIGTERM
    [record] = read_records(tmp_path / "logs" / "first")
    assert record.code == RankLost.exit_code
    assert record.message.startswith("train: another rank ended or cannot be reached")
    written = (tmp_path / "logs/first/rank-0.log").read_text()
    assert written.rstrip().endswith("RuntimeError: Connection closed by peer")


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    journal = opened(tmp_path)
    journal.end(0)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_place_that_cannot_be_written_is_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "logs").write_text("a file where a folder should be")
    journal = opened(tmp_path)
    assert not journal.opened
    journal.end(4, "words")
    assert capsys.readouterr().err == ""


def test_a_log_on_a_full_disk_falls_silent(capsys: pytest.CaptureFixture[str]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    logs.configure()
    handler = logs.also_to(Path("/dev/full"), 0, "here")
    logs.get_logger("plant_dist.somewhere").info("said")
    logs.no_longer_to(handler)
    [line] = capsys.readouterr().err.splitlines()
    assert line.endswith("said")


def test_the_newest_launch_is_the_one_whose_rank_began_last(tmp_path: Path) -> None:
    assert newest_launch(tmp_path) is None
    # Against the order of their names.
    opened(tmp_path, launch="b").end(0)
    opened(tmp_path, launch="a").end(0)
    newest = newest_launch(tmp_path)
    assert newest is not None
    assert newest.name == "a"


def test_records_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    opened(tmp_path).end(0)
    folder = tmp_path / "logs" / "first"
    (folder / "rank-1.json").write_text('{"rank": 1')
    (folder / "rank-2.json").write_text('{"unknown": 1}')
    assert [record.rank for record in read_records(folder)] == [0]


def test_replacing_leaves_nothing_beside(tmp_path: Path) -> None:
    replace_json(tmp_path / "a.json", {"x": 1})
    replace_json(tmp_path / "a.json", {"x": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}
    with pytest.raises(TypeError):
        replace_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": 2}
    assert len(list(tmp_path.iterdir())) == 1
