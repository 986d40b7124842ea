"""Two processes train the language model as one does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from language_ranks import train_language

pytestmark = pytest.mark.distributed


def test_two_processes_train_the_language_model_as_one(
    run_two: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    first, second = run_two("language_ranks.py", tmp_path)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = train_language(tmp_path / "alone")
    torch.set_num_threads(before)
    assert first["weights"] == second["weights"]
    assert len(alone["losses"]) > 10
    assert first["losses"] == pytest.approx(alone["losses"], abs=1e-5)
    assert first["best"] == pytest.approx(alone["best"], abs=1e-5)
    assert first["weights"] == pytest.approx(alone["weights"], abs=1e-4)
