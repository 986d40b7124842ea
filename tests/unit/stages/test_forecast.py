"""Forecasts for clusters: the arithmetic by hand, the words, and the memory of a real step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from plant_dist.cli import main
from plant_dist.config.load import build_section
from plant_dist.config.schema import Config
from plant_dist.errors import ConfigError
from plant_dist.models.shapes import EncoderShape
from plant_dist.planning import amount
from plant_dist.shortlist.index import build_shard
from plant_dist.stages.estimate import LABEL_TABLES, Share, distinct_labels
from plant_dist.stages.forecast import forecast
from plant_dist.stages.traffic import Machine, index_size, seconds_of

ROOT = Path(__file__).resolve().parents[3]
# 16 wide, 10 token ids, 300 parameters of which 160 are token embeddings.
ENCODER = EncoderShape(width=16, vocabulary=10, parameters=300, trained=300, blocks=2, kept=50)
SHARE = Share(documents=4, tokens=40)
MACHINE = Machine(
    ranks=8, memory=1e9, compute=1e6, memory_rate=1e6, link_rate=1e6, search_rate=1e6
)  # fmt: skip


def config(**sections: dict[str, Any]) -> Config:
    wanted: dict[str, dict[str, Any]] = {
        "train": {"labels": "shortlist"},
        "model": {"branches": ["learned", "planted"]},
        "labels": {"engine": "sharded"},
        "rank": {"width": 7},
        "shortlist": {"width": 8, "labels_per_document": 5},
    }
    for name, values in sections.items():
        wanted[name] = {**wanted.get(name, {}), **values}
    return build_section(Config, wanted)


def test_what_a_rank_holds_and_sends_by_hand() -> None:
    found = forecast(config(), ENCODER, 8_000_000, SHARE, MACHINE)
    # Boost 16, bias 1, query 16, factor 7, retrieval 8; a sum of squares each.
    tables = next(part for part in found.device if part.name == LABEL_TABLES)
    assert (tables.weights, tables.moments) == (4e6 * 48, 4e6 * 5)
    # 20 draws from 8 million hardly meet. Seven eighths of all rows lie with others.
    assert found.sent.rows == found.sent.gradients == pytest.approx(20 * 48 * 4 * 7 / 8, rel=1e-5)
    assert found.sent.ids == pytest.approx(20 * 5 * 8 * 7 / 8, rel=1e-5)
    # Encoder, ten tokens' factors and biases, and the learned tower's projection; there and back.
    assert found.sent.shared == 2 * 7 / 8 * 4 * (300 + 10 * 8 + 8 * 8)
    bagged = config(
        model={"branches": ["learned", "planted", "bag"], "bag_width": 3, "bag_pairs": 4}
    )
    also = forecast(bagged, ENCODER, 8_000_000, SHARE, MACHINE).sent.shared
    assert also - found.sent.shared == 2 * 7 / 8 * 4 * (10 + 4) * 3
    # Nine numbers of the ranker's tower go out to seven; five labels and scores come from each.
    assert found.sent.questions == 4 * 7 * (9 * 4 + 5 * 12)
    assert found.host["label maps"] == 2 * 8 * 8e6


def test_seconds_are_work_over_rates() -> None:
    asked = config()
    found = forecast(asked, ENCODER, 8_000_000, SHARE, MACHINE)
    index = replace(index_size(asked, 10, 9), scanned=100.0)
    seconds = seconds_of(asked, ENCODER, 8_000_000, SHARE, found.sent, index, MACHINE)
    assert seconds["encoder"] == pytest.approx(6 * 140 * 40 / 1e6)
    assert seconds["label attention"] == pytest.approx(6 * 40 * 5 * (16 + 16 + 7) / 1e6)
    assert seconds["all-to-all"] == pytest.approx(found.sent.all_to_all / 1e6)
    assert seconds["search"] == pytest.approx((4 * 8 * 100 + found.sent.questions) / 1e6)
    frozen = config(train={"labels": "shortlist", "optim": {"freeze_encoder": True}})
    again = forecast(frozen, ENCODER, 8_000_000, SHARE, MACHINE)
    assert again.seconds["encoder"] == pytest.approx(seconds["encoder"] / 3)
    alone = forecast(asked, ENCODER, 1000, SHARE, replace(MACHINE, ranks=1))
    assert alone.sent.all_to_all == alone.seconds["all-reduce"] == 0


def test_all_labels_of_every_rank_are_fetched_where_all_are_considered() -> None:
    asked = config(train={"labels": "all"}, labels={"engine": "sharded", "optimizer": "adagrad"})
    found = forecast(asked, ENCODER, 1000, SHARE, MACHINE)
    # Each of eight ranks owns an eighth, and fetches the rest.
    assert found.sent.rows == pytest.approx(1000 * 7 / 8 * found.rows.numbers * 4)
    assert found.step["fetched rows"] == pytest.approx(3 * 1000 * found.rows.numbers * 4)


def test_a_checkpoint_is_written_from_a_copy() -> None:
    found = forecast(config(), ENCODER, 8_000_000, SHARE, MACHINE)
    written = sum(part.weights + part.moments for part in found.device)
    assert found.host["checkpoint"] == written > 0
    waits = config(runtime={"async_checkpoints": "never"})
    assert "checkpoint" not in forecast(waits, ENCODER, 8_000_000, SHARE, MACHINE).host


def test_rows_are_laid_out_for_each_document() -> None:
    asked = config()
    found = forecast(asked, ENCODER, 8_000_000, SHARE, MACHINE)
    pairs = SHARE.documents * asked.shortlist.labels_per_document
    # The rows that a document reads, and their gradients.
    assert found.step["rows by document"] == 2 * pairs * found.rows.numbers * 4
    every = forecast(config(train={"labels": "all"}), ENCODER, 1000, SHARE, MACHINE)
    assert every.step["rows by document"] == 0


def test_replicated_rows_hear_every_rank() -> None:
    found = forecast(config(labels={"engine": "replicated"}), ENCODER, 8_000_000, SHARE, MACHINE)
    assert found.rows.engine == "replicated"
    assert found.sent.rows == 0
    assert found.sent.gradients == pytest.approx(7 * 20 * 48 * 4, rel=1e-5)


def test_labels_that_documents_share_are_fetched_once() -> None:
    drawn = np.random.default_rng(0).integers(0, 50, (2000, 20))
    mean = np.mean([len(set(one)) for one in drawn.tolist()])
    assert distinct_labels(50, SHARE, 5) == pytest.approx(mean, rel=0.01)
    assert distinct_labels(10**9, SHARE, 5) == pytest.approx(20)


@pytest.mark.parametrize(
    "factory",
    ["Flat", "IVF64,SQ8", "IVF16,Flat", "IVF32,PQ4x4fs", "PQ4", "IVF32,PQ8x4fs,Refine(SQ8)"],
)
def test_an_index_is_as_large_as_its_file(factory: str, tmp_path: Path) -> None:
    labels, width = 20_000, 16
    vectors = np.random.default_rng(0).normal(size=(labels, width)).astype(np.float32)
    index = build_shard(lambda low, high: vectors[low:high], 0, labels, width, factory, seed=0)
    faiss.write_index(index, str(tmp_path / "index"))
    size = index_size(config(shortlist={"index": factory}), labels, width)
    assert size.factory == factory
    assert (tmp_path / "index").stat().st_size == pytest.approx(size.bytes, rel=0.02)


@pytest.mark.parametrize("engine", ["replicated", "sharded"])
def test_memory_is_what_a_step_really_takes(engine: str) -> None:
    """Rows, optimizer and steps of 300,000 labels in a process of its own: within 15 percent.

    As many that rows outweigh what the heap had free before, which differs by 40 MB among machines.
    """
    if engine == "sharded":
        pytest.importorskip("torchrec")
    out = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "rows.py"), "--worker", engine, "--labels",
         "300000", "--steps", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, capture_output=True, check=True,
    ).stdout  # fmt: skip
    (rank,) = json.loads(out.splitlines()[-1])["ranks"]
    measured = (rank["peak_mib"] - rank["before_mib"]) * 2**20
    asked = config(labels={"engine": engine}, rank={"width": 256},
                   shortlist={"labels_per_document": 512, "vectors": "ranker"})  # fmt: skip
    encoder = replace(ENCODER, width=256)
    share, alone = Share(16, 16 * 128), replace(MACHINE, ranks=1)
    found = forecast(asked, encoder, 300_000, share, alone)
    tables = next(part for part in found.device if part.name == LABEL_TABLES)
    assert found.rows.numbers == 769
    predicted = tables.total + sum(v for k, v in found.step.items() if k != "encoder")
    assert predicted == pytest.approx(measured, rel=0.15)


def test_the_command_says_whether_it_fits(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--gpus", "64", "--gpu-memory", "80GB", "--tokens", "128"]
    assert main([*words, "--labels", "100M"]) == 0
    said = capsys.readouterr().out
    assert "100,000,000 labels on 64 GPUs of 80.00 GB, 8 a node, in " in said
    assert "a GPU: fits" in said
    # 1,562,500 rows of 768 + 1 + 768 + 256 + 256 numbers.
    assert f"label tables    {1_562_500 * (2049 + 5) * 4 / 1e9:.2f} GB" in said
    assert "index    IVF2048,PQ129x4fs,Refine(SQ8) of 258 numbers" in said
    for part in ("all-to-all", "all-reduce", "search", "documents a second"):
        assert part in said
    assert main([*words, "--labels", "1G"]) == 0
    said = capsys.readouterr().out
    assert "does NOT fit" in said
    assert "instead  more --gpus, labels.placement=uvm" in said
    assert main([*words, "--labels", "30M", "--set", "labels.engine=replicated"]) == 0
    assert "instead  labels.engine=sharded" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["amazon3m", "mimicfull", "quickstart"])
def test_a_config_of_any_precision_is_planned_and_auto_means_bf16(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*words: str) -> str:
        config = str(ROOT / "configs" / f"{name}.yaml")
        assert main(["plan", "--config", config, *words, "--debug"]) == 0
        return capsys.readouterr().out

    assert "8 a node, in bf16" in planned()
    assert planned() == planned("--set", "runtime.precision=bf16")
    assert "8 a node, in fp32" in planned("--set", "runtime.precision=fp32")


def test_amounts(capsys: pytest.CaptureFixture[str]) -> None:
    assert [amount(text) for text in ("100M", "80GB", "1.5TB/s", "3e2", "20GB/s", "7")] == [
        1e8, 80e9, 1.5e12, 300, 20e9, 7,
    ]  # fmt: skip
    with pytest.raises(SystemExit):
        main(["plan", "--labels", "many"])
    assert "'many' is no amount" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"--gpus is 0; it must be at least 1"):
        main(["plan", "--labels", "5", "--gpus", "0", "--debug"])
    with pytest.raises(ConfigError, match="how many labels"):
        main(["plan", "--debug"])
