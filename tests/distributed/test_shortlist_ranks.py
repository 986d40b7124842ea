"""Two processes that each own half of the index train as one does, also after one has died."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fork_server import Server
from shortlist_run import ALONE, DIED, L, train_shortlisted

pytestmark = [pytest.mark.distributed, pytest.mark.usefixtures("one_thread")]
SCRIPT = "shortlist_run.py"


@pytest.fixture(scope="module")
def together(run_two: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_two(SCRIPT, tmp_path_factory.mktemp("together"))


def test_two_processes_train_on_the_shortlists_of_one(
    together: dict[str, Any], tmp_path: Path
) -> None:
    alone = train_shortlisted(tmp_path, ALONE)
    assert alone["shards"] == [(0, L)]
    assert together["shards"] == [[0, 20], [20, L]]
    assert len(alone["losses"]) == 24
    assert together["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert together["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
    assert together["weights"] == pytest.approx(alone["weights"], rel=1e-4)
    assert together["recall"] == pytest.approx(alone["recall"])
    assert together["overlap"] == 1.0


def test_nothing_is_lost_when_a_rank_dies_while_the_index_is_made(
    together: dict[str, Any], server: Server, run_two: Callable[..., Any], tmp_path: Path
) -> None:
    """After step 7: an index was begun at 6 and is due at 9; the last checkpoint is of 4."""
    died = server.run(SCRIPT, tmp_path, "--dies-after", "7")
    assert died.codes[0] != 0
    assert died.codes[1] == DIED
    assert not (tmp_path / "found.json").exists()
    assert (tmp_path / "run" / "checkpoints" / "step-00000004" / "shortlist.about.json").is_file()
    found = run_two(SCRIPT, tmp_path)
    assert found["losses"] == together["losses"][4:]
    assert found["weights"] == together["weights"]
    assert found["recall"] == together["recall"]
    # What the dead rank had begun to write is gone.
    assert list((tmp_path / "run" / "shortlists").glob(".*")) == []


def test_shared_weights_are_whole_while_an_index_is_made(
    together: dict[str, Any], run_two: Callable[..., Any], tmp_path: Path
) -> None:
    """Ranks read unlike numbers of texts and documents, in which DeepSpeed would have them wait."""
    pytest.importorskip("deepspeed")
    found = run_two(SCRIPT, tmp_path, "--engine", "zero3")
    assert found["losses"] == pytest.approx(together["losses"], rel=1e-4)
    assert found["metrics"] == pytest.approx(together["metrics"], abs=1e-4)
    assert found["recall"] == pytest.approx(together["recall"])
    assert found["shards"] == together["shards"]


@pytest.mark.parametrize("engine", ["replicated", "sharded"])
def test_rows_of_two_ranks_learn_on_shortlists_as_those_of_one(
    engine: str, run_two: Callable[..., Any], tmp_path: Path
) -> None:
    """Names included, which never learn; and all labels are scored exactly where they are."""
    if engine == "sharded":
        pytest.importorskip("torchrec")
    found = run_two(SCRIPT, tmp_path, "--rows", engine)
    alone = train_shortlisted(tmp_path / "alone", ALONE, rows="replicated")
    assert found["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    assert found["metrics"] == pytest.approx(alone["metrics"], abs=1e-4)
    assert found["recall"] == pytest.approx(alone["recall"])
    assert found["best"] == alone["best"]
    assert found["shards"] == ([[0, 21], [21, L]] if engine == "sharded" else [[0, 20], [20, L]])
