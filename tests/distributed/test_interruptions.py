"""Real signals to a real process, and what is left after each."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
from fork_server import Server
from one_run import PAUSE_STEP, SETTINGS
from tiny_task import train_tiny

pytestmark = pytest.mark.usefixtures("one_thread")
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL)


def paused_process(folder: Path) -> int:
    """Wait until a training pauses; return its process."""
    deadline = time.monotonic() + 120
    while not (folder / "paused").exists():
        assert time.monotonic() < deadline, "not there within two minutes"
        time.sleep(0.01)
    return int((folder / "paused").read_text())


@pytest.fixture(scope="module")
def ended(
    server: Server, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, tuple[Path, int, str]]:
    """Folder, exit code and last words of a run that each signal met after step 7."""
    top = tmp_path_factory.mktemp("signals")
    running = {one: server.start("one_run.py", top / one.name, world=1) for one in SIGNALS}
    found = {}
    for one, process in running.items():
        folder = top / one.name
        os.kill(paused_process(folder), one)
        (folder / "go").touch()
        ranks = server.wait(process, folder)
        found[int(one)] = (folder, ranks.codes[0], ranks.words)
    return found


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    curve, _ = train_tiny(tmp_path_factory.mktemp("straight"), SETTINGS, dropout=0.3)
    return curve.losses


def saved_step(folder: Path) -> int:
    return int((folder / "checkpoints" / "latest").read_text().strip().removeprefix("step-"))


def resumed(folder: Path) -> list[float]:
    curve, _ = train_tiny(folder / "checkpoints", SETTINGS, dropout=0.3)
    return curve.losses


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_the_step_saves_and_exits_with_75(
    ended: dict[int, tuple[Path, int, str]], straight: list[float], number: signal.Signals
) -> None:
    folder, code, words = ended[int(number)]
    assert code == 75
    assert f"tiny stopped by {number.name} after step {PAUSE_STEP} of 24" in words
    assert saved_step(folder) == PAUSE_STEP
    before = json.loads((folder / "losses.json").read_text())
    assert before + resumed(folder) == straight


def test_kill_minus_nine_costs_the_steps_since_the_last_checkpoint(
    ended: dict[int, tuple[Path, int, str]], straight: list[float]
) -> None:
    folder, code, _ = ended[int(signal.SIGKILL)]
    assert code == -signal.SIGKILL
    # Steps 4 (periodic) and 6 (the best validation so far) were saved, 7 was not.
    assert saved_step(folder) == 6
    assert resumed(folder) == straight[6:]
