"""Two processes train the contextual ranker as one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contextual_corpus import train_contextual

pytestmark = pytest.mark.distributed


def test_two_processes_pretrain_the_contextual_ranker_as_one(
    run_two: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    first, second = run_two("contextual_ranks.py", tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_contextual(tmp_path / "alone")
    torch.set_num_threads(before)
    assert first["weights"] == second["weights"]
    assert first["held out"] == alone["held out"]
    assert len(alone["losses"]) > 10
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    for one, other in zip(first["metrics"], alone["metrics"], strict=True):
        assert one == pytest.approx(other, abs=1e-5)
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-3)
