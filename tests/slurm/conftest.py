"""One SLURM for all tests here, and a place of work that its jobs share: a tiny corpus, no GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))
sys.path.append(str(Path(__file__).parents[1] / "pipeline"))
from cluster import Cluster, reason_to_skip
from shared_site import TRAINING, Site
from tiny_corpus import ROOT, environment, write_inputs


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := reason_to_skip():
        pytest.skip(reason)
    started = Cluster(tmp_path_factory.mktemp("cluster"))
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def site(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Site:
    work = tmp_path_factory.mktemp("site")
    config = write_inputs(work)
    # What a user would write into slurm/site.env.
    (work / "site.env").write_text(
        f"PLANT_WORK={work}\nPLANT_PYTHON={sys.executable}\nPLANT_CPU_PARTITION=cpu\n"
        # The nodes' GPUs are files without content.
        "PLANT_DEVICE=cpu\n"
    )
    straight = work / "straight"
    words = [word for setting in TRAINING for word in ("--set", setting)]
    subprocess.run(
        [sys.executable, "-m", "plant_dist", "run", "--config", str(config), *words,
         "--output", str(straight)],
        check=True, capture_output=True, env={**os.environ, **environment(work)}, cwd=ROOT,
    )  # fmt: skip
    return Site(cluster, work, config, straight)
