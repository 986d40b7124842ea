"""Two processes train the contextual ranker as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contextual_corpus import train_contextual

pytestmark = pytest.mark.distributed
HERE = Path(__file__).parent


def test_two_processes_pretrain_the_contextual_ranker_as_one(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        str(HERE / "contextual_ranks.py"), "--folder-of-results", str(tmp_path),
    ]  # fmt: skip
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    ran = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stderr[-4000:]
    first, second = json.loads((tmp_path / "found.json").read_text())
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
