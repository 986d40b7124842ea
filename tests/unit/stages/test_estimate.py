"""The plan's arithmetic, worked by hand and against the model that training would make."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from plant_dist.cli import main
from plant_dist.config.load import build_section
from plant_dist.config.schema import Config
from plant_dist.labels.choice import plan_rows
from plant_dist.models.shapes import EncoderShape
from plant_dist.stages.estimate import (
    LABEL_TABLES,
    CorpusSizes,
    Part,
    Share,
    activations_of,
    label_widths,
    parts_of,
    share_of,
    steps_of,
)

# 100 parameters, 16 wide, 10 token ids, 2 blocks that keep 50 numbers of a token.
ENCODER = EncoderShape(width=16, vocabulary=10, parameters=100, trained=100, blocks=2, kept=50)
SIZES = CorpusSizes(labels=1000, documents=640, padded=64.0, widest=128)


def config(**sections: dict[str, Any]) -> Config:
    return build_section(Config, sections)


def parts(asked: Config, encoder: EncoderShape, labels: int) -> list[Part]:
    """With rows kept as a training over all labels keeps them."""
    rows = plan_rows(
        asked.labels, labels, label_widths(asked, encoder.width), 1, 1e12,
        rowwise=asked.train.optim.rowwise,
    )  # fmt: skip
    return parts_of(asked, encoder, labels, rows)


BYTES = {
    # Weights, gradients, moments, copies of 100 fp32 parameters on each of 4 devices.
    ("ddp", "none"): (400, 400, 800, 0),
    ("zero1", "none"): (400, 400, 200, 100),
    ("zero2", "none"): (400, 100, 200, 100),
    ("zero3", "none"): (100, 100, 200, 100),
    ("zero2", "optimizer"): (400, 100, 0, 0),
    ("zero3", "parameters"): (0, 100, 0, 0),
}


@pytest.mark.parametrize(("engine", "offload"), BYTES)
def test_an_encoder_under_each_engine_by_hand(engine: str, offload: str) -> None:
    asked = config(runtime={"engine": engine, "offload": offload, "precision": "fp32"})
    rows = plan_rows(asked.labels, 9, label_widths(asked, 16), 4, 1e12, rowwise=True)
    encoder, tables, *_ = parts_of(asked, ENCODER, 9, rows, world=4)
    found = (encoder.weights, encoder.gradients, encoder.moments, encoder.copies)
    assert found == BYTES[engine, offload]
    assert tables.weights == rows.rows_bytes


def test_a_row_by_hand() -> None:
    asked = config(model={"branches": ["learned", "planted"], "gates": "learned"},
                   rank={"width": 7})  # fmt: skip
    assert label_widths(asked, 16) == {"boost": 16, "bias": 1, "query": 16, "factor": 7, "gate": 2}
    contextual = config(model={"branches": ["planted"]}, rank={"kind": "contextual"})
    assert label_widths(contextual, 16) == {"boost": 16, "bias": 1, "factor": 16}


def test_weights_gradients_and_moments_by_hand() -> None:
    asked = config(rank={"width": 7}, mig={"top_tokens": 3},
                   model={"branches": ["learned", "planted", "static"]})  # fmt: skip
    encoder, labels, ranker, gains = parts(asked, ENCODER, 1000)
    assert (encoder.weights, encoder.gradients, encoder.moments, encoder.copies) == (
        400, 400, 800, 0,
    )  # fmt: skip
    # Boost 16, bias 1, query 16, factor 7; by rows, one second moment for each of the four.
    assert (labels.weights, labels.gradients) == (160_000, 160_000)
    assert labels.moments == 160_000 + 4 * 1000 * 4
    # A factor of 7 and a bias for each of ten tokens.
    assert (ranker.weights, ranker.moments) == (320, 640)
    assert gains.total == 2 * 1000 * 3 * 8


def test_a_bag_is_a_table_of_tokens_and_a_field_of_the_rows() -> None:
    asked = config(model={"branches": ["static", "bag"], "bag_width": 6, "bag_pairs": 4})
    assert label_widths(asked, 16) == {"boost": 16, "bias": 1, "bag": 6}
    *_, bag = parts(asked, ENCODER, 1000)
    # Ten tokens and four buckets of six numbers, with a gradient and two moments each.
    assert (bag.name, bag.weights, bag.gradients, bag.moments) == ("bag", 336, 336, 672)


def test_rows_of_names_are_held_and_never_learn() -> None:
    with_names = config(model={"branches": ["learned", "named"]})
    rows = next(part for part in parts(with_names, ENCODER, 1000) if part.name == LABEL_TABLES)
    # Boost, bias, query learn; name, prior and the mark of a label that has nothing else do not.
    assert (rows.weights, rows.gradients) == (4000 * (33 + 18), 4000 * 33)
    assert rows.moments == 4000 * (33 + 3)


def test_what_does_not_learn_has_no_gradient() -> None:
    frozen = config(train={"optim": {"freeze_encoder": True}}, model={"freeze_ranker": True})
    encoder, _, ranker, _, _ = parts(frozen, ENCODER, 10)
    assert encoder.total == encoder.weights == 400
    assert ranker.total == ranker.weights
    assert activations_of(frozen, ENCODER, 10, share_of(frozen, SIZES, 1))["encoder"] == (
        25 * 32 * 128 * 4
    )


def test_adapters_are_held_in_single_precision_beside_rounded_weights() -> None:
    adapted = EncoderShape(16, 10, parameters=120, trained=20, blocks=2, kept=50)
    asked = config(encoder={"lora_rank": 2, "load_in": "bf16"}, runtime={"precision": "bf16"})
    part = parts(asked, adapted, 10)[0]
    assert (part.weights, part.gradients, part.moments, part.copies) == (
        100 * 2 + 20 * 4, 80, 160, 40,
    )  # fmt: skip


def test_averages_and_starting_weights_are_copies() -> None:
    asked = config(train={"ema_decay": 0.9, "start_share": 0.3})
    assert parts(asked, ENCODER, 10)[0].copies == 2 * 400


def test_devices_share_a_batch() -> None:
    tokens = config(train={"tokens_per_batch": 4096})
    assert share_of(tokens, SIZES, 1).tokens == 4096
    assert share_of(tokens, SIZES, 8) == Share(8, 512)
    # The longest document is one device's, whatever the budget.
    assert share_of(tokens, SIZES, 64).tokens == 128
    documents = config(train={"documents_per_batch": 20})
    assert share_of(documents, SIZES, 8) == Share(3, 3 * 128)


def test_steps() -> None:
    assert steps_of(config(train={"documents_per_batch": 32, "epochs": 3}), SIZES) == (20, 60)
    budget = config(train={"tokens_per_batch": 4096, "epochs": 3, "accumulation": 4})
    assert steps_of(budget, SIZES) == (10, 9)
    assert steps_of(config(train={"max_steps": 7}), SIZES)[1] == 7
    counted = CorpusSizes(1000, 640, 64.0, 128, batches=33)
    assert steps_of(config(train={"epochs": 2}), counted) == (33, 66)


@pytest.mark.parametrize(("processes", "share"), [(1, 16384), (8, 2048)])
def test_a_plan_without_a_corpus(
    processes: int, share: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    sizes = {"labels": 10_000, "train_documents": 4_000, "document_tokens": 126}
    words = [f"plan.{name}={value}" for name, value in sizes.items()]
    words += ["model.branches=[learned, planted, static]"]
    words += ["encoder.name=google-bert/bert-base-uncased", "train.tokens_per_batch=16384",
              "train.epochs=2", f"runtime.processes={processes}",
              "data.path=none"]  # fmt: skip
    words += ["labels.engine=sharded"] if processes == 8 else []
    arguments = [part for word in words for part in ("--set", word)]
    path = tmp_path / "config.yaml"
    path.write_text("name: planned\n")
    assert main(["run", "--config", str(path), *arguments, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "encoder  google-bert/bert-base-uncased: 108.9 M parameters, 768 wide" in plan
    assert "labels   10000 (plan.labels) x 1793 numbers" in plan
    assert ("on the device;" if processes == 1 else "on each of 8 devices") in plan
    # Sharded, a label has its numbers and, for each of four fields, a sum of squares.
    spread = 10_000 / 8 * (1793 + 4) * 4 / 2**30
    whole = 10_000 * (3 * 1793 + 4) * 4 / 2**30
    assert f"label tables {spread if processes == 8 else whole:>8.2f} GiB" in plan
    assert ("rows     sharded (adagrad)" in plan) == (processes == 8)
    assert f"{share} padded tokens" in plan
    # 126 tokens and two special ones make 128, of which 128 fit into a batch: 4000 / 128.
    assert "steps    about 64: 2 epochs of 4000 documents in 32 batches" in plan
    assert [one.name for one in tmp_path.iterdir()] == ["config.yaml"]


def test_a_plan_without_sizes_says_how_to_name_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "config.yaml"
    path.write_text("data: {path: none}\nencoder: {name: google-bert/bert-base-uncased}\n")
    assert main(["run", "--config", str(path), "--dry-run"]) == 0
    assert "or set plan.labels" in capsys.readouterr().out
    path.write_text("data: {path: none}\nencoder: {name: nobody/nothing}\n")
    assert main(["run", "--config", str(path), "--dry-run"]) == 0
    assert "nobody/nothing: sizes unknown; " in capsys.readouterr().out
