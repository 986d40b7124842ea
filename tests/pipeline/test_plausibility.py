"""The benchmark of plausibility, on a tiny run whose evidence is known: the labels' own words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_corpus import ROOT, environment, rows, with_evidence, write_inputs, write_jsonl

from plant_dist.cli import main

pytest.importorskip("captum", reason="the extra `explain` is not installed")
pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, inputs: Path) -> Path:
    """A finished run over a corpus with evidence. (`inputs` puts the process's settings back.)"""
    folder = tmp_path_factory.mktemp("evident")
    config = write_inputs(folder)
    write_jsonl(folder / "docs.jsonl", [with_evidence(row) for row in rows()])
    assert main(["run", "--config", str(config), "--debug"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    command = [
        sys.executable, str(ROOT / "benchmarks/plausibility.py"), str(run), "--name", "tiny",
        "--gradient-documents", "4", "--faithfulness-documents", "3", "--steps", "4",
        "--threads", "1", "--results", str(run.parent / "results"),
    ]  # fmt: skip
    ran = subprocess.run(
        command, env=environment(run.parent), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == (run.parent / "results/plausibility-tiny.md").read_text() + "\n"
    return dict(json.loads((run.parent / "results/plausibility-tiny.json").read_text()))


def test_every_gold_label_with_evidence_counts(found: dict[str, Any]) -> None:
    test = [row for row in rows() if row["split"] == "test"]
    pairs = sum(len({one["label"] for one in with_evidence(row)["evidence"]}) for row in test)
    assert {one["pairs"] for one in found["all"].values()} == {pairs}
    few = sum(len({one["label"] for one in with_evidence(row)["evidence"]}) for row in test[:4])
    assert {one["pairs"] for one in found["few"].values()} == {few}
    assert len(found["few"]) == len(found["all"]) + 4


def test_gains_point_at_the_words_that_make_the_labels(found: dict[str, Any]) -> None:
    by_method = found["all"]
    for method in ("gain alone (static MIG)", "attention, static"):
        assert by_method[method]["auprc"] > 0.9
        assert by_method[method]["token_f1"] > 0.9
        assert by_method[method]["span_f1"] > 0.9
    # Chance is the share of the gold tokens, some 2 of 30.
    assert by_method["random"]["auprc"] < 0.4
    assert by_method["attention, combined"]["auprc"] > 2 * by_method["random"]["auprc"]


def test_the_model_rests_on_what_its_static_branch_attends(found: dict[str, Any]) -> None:
    faithful = found["faithfulness"]
    static, chance = faithful["attention, static"], faithful["random"]
    assert static["comprehensiveness"] > chance["comprehensiveness"]
    assert static["sufficiency"] < chance["sufficiency"]
    assert faithful.keys() == found["few"].keys()


def test_integrated_gradients_add_up_to_the_change_of_the_logit(run: Path) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        from attributions import Reader

        from plant_dist.stages.saved import SavedClassifier
    finally:
        sys.path.pop(0)
    saved = SavedClassifier.load(run / "classifier", torch.device("cpu"))
    ids = saved.tokenizer(rows()[3]["text"], add_special_tokens=False)["input_ids"]
    reader, label = Reader(saved), 3
    found = reader.gradients(ids, label, steps=64)
    assert {len(one) for one in found.values()} == {len(ids)}
    # The axiom of completeness, against the model itself on embeddings and on padding.
    batch = reader.batch(ids)
    embed = saved.model.encoder.backbone.get_input_embeddings()
    blank = batch.input_ids.masked_fill(batch.keep, saved.segmentation.special.pad)
    with torch.no_grad():
        full = reader._logit(embed(batch.input_ids), batch, label)
        without = reader._logit(embed(blank), batch, label)
        expected = saved.model(batch.input_ids, batch.attention_mask, batch.keep).logits[0, label]
    assert full.item() == pytest.approx(expected.item(), abs=1e-5)
    total = found["integrated gradients, sum"].sum()
    assert total == pytest.approx((full - without).item(), abs=0.02)
    assert np.all(found["gradient × input, norm"] >= 0)
