"""Two ranks that meet a fault lose the steps since the last checkpoint, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("deepspeed")
pytest.importorskip("torchrec")

from fault_ranks import EVERY, HANG_SECONDS, STEPS
from fork_server import Server

SIGKILL = -9
RANK_LOST = 7

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(server: Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How trainings ended, see fault_ranks.py."""
    folder = tmp_path_factory.mktemp("faults")
    ended = server.run("fault_ranks.py", folder, world=1)
    assert ended.codes == [0], ended.words[-4000:]
    content: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return content


def assert_went_on(fault: dict[str, Any], left: int) -> None:
    assert fault["left"] == left
    assert fault["trained again"] == STEPS - left
    assert fault["same curve"]


@pytest.mark.parametrize("number", range(3))
def test_a_rank_killed_at_any_moment(found: dict[str, Any], number: int) -> None:
    kill = found["kills"][number]
    assert kill["codes"][kill["rank"]] == SIGKILL
    assert kill["codes"][1 - kill["rank"]] not in (0, SIGKILL)
    if kill["moment"] == "step":
        # What was saved after the step before is still being written.
        assert kill["left"] == (kill["step"] - 2) // EVERY * EVERY
    else:
        # Of what is written after this step: whole, or not there.
        assert kill["left"] in (kill["step"] - EVERY, kill["step"])
    assert_went_on(kill, kill["left"])


def test_a_full_disk_on_one_rank_ends_both_with_its_words(found: dict[str, Any]) -> None:
    full = found["full disk"]
    # The other rank's own words go to a file that may not grow either, which changes its code.
    assert full["codes"][0] == 4
    assert full["codes"][1] > 0
    assert "step-00000012 cannot be written" in full["said"][0].strip().splitlines()[-1]
    assert_went_on(full, 8)


def test_a_truncated_shard_of_one_rank_falls_back_and_says_so(found: dict[str, Any]) -> None:
    cut = found["truncated"]
    assert cut["left"] == 16
    assert cut["trained again"] == STEPS - 12
    assert cut["same curve"]
    assert "optimizer-00002-of-00002.safetensors is truncated" in cut["resumed"]
    assert "trying the checkpoint before it" in cut["resumed"]


def test_a_rank_that_hangs_ends_both_and_is_named(found: dict[str, Any]) -> None:
    hung = found["hung"]
    assert hung["codes"] == [RANK_LOST, 6]
    waits, hangs = (words.strip().splitlines()[-1] for words in hung["said"])
    for words in (waits, hangs):
        assert f"no step for {HANG_SECONDS:g} s, at step 10; hangs: rank 1 at" in words
        assert "waits: rank 0 in all_reduce of gradients (backward)" in words
    assert_went_on(hung, 8)


def test_a_rank_that_is_frozen_is_named_by_the_other(found: dict[str, Any]) -> None:
    frozen = found["stopped"]
    assert frozen["codes"] == [RANK_LOST, SIGKILL]
    words = frozen["said"][0].strip().splitlines()[-1]
    assert "hangs: rank 1 (says nothing); waits: rank 0 in " in words
    assert_went_on(frozen, 8)
