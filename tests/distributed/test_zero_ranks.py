"""ZeRO on two processes: the training of one, and checkpoints that any engine goes on from."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("torchrec")

from fork_server import Server
from overlapping import LAYERS
from zero_ranks import CHAINS, ENGINES, LEG_STEPS, LEGS, SETTINGS, STEPS

# fp32: what the losses of 20 steps may differ by. bf16: against fp32, and between engines.
CLOSE, HALF, HALF_ENGINES = 1e-4, 0.02, 2e-3

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each set of ranks computed, see zero_ranks.py."""
    folder = tmp_path_factory.mktemp("zero")
    ended = server.run("zero_ranks.py", folder, world=1)
    assert ended.codes == [0], ended.words[-4000:]
    names = ["trains1", "trains2", "half", *(f"leg{number}" for number in range(len(LEGS)))]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def assert_close(one: Any, other: Any, tolerance: float = CLOSE) -> None:
    np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_steps_of_two_processes_are_those_of_one(
    found: dict[str, Any], engine: str, name: str
) -> None:
    alone, together = found["trains1"][f"ddp {name}"], found["trains2"][f"{engine} {name}"]
    assert len(alone["losses"]) == STEPS
    for what in ("losses", "norms", "metrics", "weights"):
        assert_close(together[what], alone[what])
    assert together["ranks agree"]


@pytest.mark.parametrize("rows", ["dense", "sharded"])
@pytest.mark.parametrize("engine", ENGINES)
def test_an_encoder_under_zero_trains_with_its_label_rows(
    found: dict[str, Any], engine: str, rows: str
) -> None:
    alone, together = found["trains1"][f"ddp {rows}"], found["trains2"][f"{engine} {rows}"]
    assert len(alone["losses"]) == STEPS
    assert_close(together["losses"], alone["losses"])
    assert_close(together["metrics"], alone["metrics"])
    for name, one in (alone["rows"] or {}).items():
        assert_close(together["rows"][name], one)


@pytest.mark.parametrize("engine", ENGINES)
def test_adapters_of_a_causal_model_train_under_zero(found: dict[str, Any], engine: str) -> None:
    # Frozen weights in bf16 round alike on any number of processes.
    alone = found["trains1"]["ddp lora"]
    assert alone[0] > alone[7] > 0
    assert_close(found["trains2"][f"{engine} lora"], alone, 1e-3)


def test_one_process_may_train_under_zero(found: dict[str, Any]) -> None:
    for name in SETTINGS:
        one, other = (found["trains1"][f"{engine} {name}"] for engine in ("ddp", "zero2"))
        assert_close(other["losses"], one["losses"])
        assert_close(other["weights"], one["weights"])


def test_averages_are_kept_under_zero(found: dict[str, Any]) -> None:
    one, other = found["trains1"]["averaged"], found["trains2"]["averaged"]
    assert_close(other["metrics"], one["metrics"])
    assert_close(other["weights"], one["weights"])


@pytest.mark.parametrize("what", ["optimizer", "parameters"])
def test_offloading_changes_no_number(found: dict[str, Any], what: str) -> None:
    kept, offloaded = found["trains2"]["zero3 clipped"], found["trains2"][f"offload {what}"]
    assert_close(offloaded["losses"], kept["losses"], 1e-6)
    assert_close(offloaded["weights"], kept["weights"], 1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_bf16_stays_in_its_band(found: dict[str, Any], engine: str) -> None:
    fp32 = found["trains1"]["ddp plain"]["losses"]
    assert len(found["half"][engine]) == len(fp32)
    assert_close(found["half"][engine], fp32, HALF)
    assert np.max(np.abs(np.subtract(found["half"][engine], fp32))) > 1e-6
    assert_close(found["half"][engine], found["half"]["ddp"], HALF_ENGINES)


def test_resuming_under_zero_is_exact_with_dropout(found: dict[str, Any]) -> None:
    straight, again = found["trains2"]["straight"], found["trains2"]["again"]
    assert again["losses"] == straight["losses"][7:]
    assert again["weights"] == straight["weights"]


@pytest.mark.parametrize("name", CHAINS)
def test_any_engine_on_any_number_of_processes_goes_on(found: dict[str, Any], name: str) -> None:
    whole = found["trains1"]["ddp clipped"]["losses"]
    legs = [found[f"leg{number}"][name] for number in range(len(LEGS))]
    assert [len(one) for one in legs] == [LEG_STEPS] * len(LEGS)
    assert_close([loss for one in legs for loss in one], whole, 1e-5)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_are_exchanged_while_others_are_computed(
    found: dict[str, Any], engine: str
) -> None:
    seen = found["trains2"]["exchanged"][engine]
    began, ended = seen["backward"]
    exchanges = [start for start in seen["exchanges"] if began < start < ended]
    assert len(seen["layers"]) == LAYERS
    # A bucket holds four layers at most: no later than with the fifth, the first is on its way.
    assert sum(start > exchanges[0] for start in seen["layers"]) >= LAYERS - 5


def test_what_cannot_be_shared_out_is_refused(found: dict[str, Any]) -> None:
    assert "parameters thaw later" in found["trains2"]["errors"]["thawing"]
    assert "nothing is left to share out" in found["trains2"]["errors"]["nothing shared"]
    assert all("set runtime.engine=ddp" in one for one in found["trains2"]["errors"].values())
