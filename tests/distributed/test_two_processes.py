from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_task import PLAIN, train_tiny
from two_ranks import SETTINGS

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def found(run_two: Callable[[str, Path], Any], folder: Path) -> dict[str, Any]:
    """What two processes computed."""
    content: dict[str, Any] = run_two("two_ranks.py", folder)
    assert content["world"] == 2
    return content


@pytest.mark.parametrize("name", SETTINGS)
def test_two_processes_train_as_one(found: dict[str, Any], tmp_path: Path, name: str) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone, trainer = train_tiny(tmp_path, SETTINGS[name])
    torch.set_num_threads(before)
    together = found[name]
    assert together["losses"] == pytest.approx(alone.losses, abs=1e-5)
    assert len(together["losses"]) == len(alone.losses) > 3
    for one, other in zip(together["metrics"], alone.metrics, strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    weights = torch.cat([p.detach().flatten() for p in trainer.task.model.parameters()])
    assert together["weights"] == pytest.approx(weights.tolist(), abs=1e-4)
    assert together["ranks agree"]
    # 8 tokens a document, counted over both ranks.
    assert set(together["tokens"]) == {8}


def test_resuming_is_exact_with_dropout_on_two_ranks(found: dict[str, Any]) -> None:
    assert found["resumed"]["losses"] == found["straight"]["losses"]
    assert found["resumed"]["weights"] == found["straight"]["weights"]
    assert found["resumed"]["ranks agree"]


def test_ranks_draw_their_own_dropout_masks(found: dict[str, Any]) -> None:
    assert found["seeds"][0] != found["seeds"][1]


def test_gradients_are_exchanged_once_a_step(found: dict[str, Any]) -> None:
    assert found["exchanges"] == [False, True]


def test_a_signal_to_one_rank_stops_both_after_the_same_step(found: dict[str, Any]) -> None:
    main, other = found["stop"]
    assert main.startswith("75 tiny stopped by a signal on another rank after step 3 of 12")
    assert other.startswith("75 tiny stopped by SIGUSR1 after step 3 of 12")


def test_a_bad_document_of_one_rank_is_named_on_both(found: dict[str, Any]) -> None:
    main, other = found["failure"]
    assert main == other
    assert main.startswith("6 tiny: the loss is nan at step 1")
    named = main.split("documents ")[1].split(";")[0].split(", ")
    assert f"doc{found['poisoned']}" in named
    assert len(named) == 4  # rank 1's half of a batch of 8


def test_ranks_that_would_compute_in_unlike_precisions_stop(found: dict[str, Any]) -> None:
    main, other = found["unlike"]
    assert main == other
    assert main.startswith("5 runtime.precision is auto, which is fp32 on rank 0 and bf16 on rank")
    assert "set runtime.precision=fp32" in main


def test_one_process_goes_on_from_a_checkpoint_of_two(found: dict[str, Any], folder: Path) -> None:
    curve, trainer = train_tiny(folder / "plain", PLAIN)
    # The run had ended: nothing is trained, and the best weights come back.
    assert curve.losses == []
    weights = torch.cat([p.detach().flatten() for p in trainer.task.model.parameters()])
    assert weights.tolist() == found["plain"]["weights"]


def test_collectives(found: dict[str, Any]) -> None:
    assert found["spoken"] == {
        "sum": [3, 10],
        "mean": 0.5,
        "any": [True, False],
        "gathered": ["rank 0", "rank 1"],
        "exchanged": [[0], [10]],
        "broadcast": "from 1",
    }
