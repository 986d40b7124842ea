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


LABELS_DRAWN = 10


def bench(run: Path, name: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, str(ROOT / "benchmarks/plausibility.py"), str(run), "--name", name,
        "--gradient-labels", str(LABELS_DRAWN), "--faithfulness-labels", "6", "--steps", "4",
        "--threads", "1", "--resamples", "200", "--results", str(run.parent / "results"),
    ]  # fmt: skip
    return subprocess.run(
        command, env=environment(run.parent), capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def found(run: Path) -> dict[str, Any]:
    ran = bench(run, "tiny")
    assert ran.returncode == 0, ran.stderr
    results = run.parent / "results"
    assert ran.stdout == (results / "plausibility-tiny.md").read_text() + "\n"
    for picture in ("plausibility-tiny.png", "plausibility-tiny-bands.png"):
        assert (results / picture).read_bytes()[1:4] == b"PNG"
    return dict(json.loads((results / "plausibility-tiny.json").read_text()))


def test_every_gold_label_with_evidence_counts(found: dict[str, Any]) -> None:
    test = [row for row in rows() if row["split"] == "test"]
    pairs = sum(len({one["label"] for one in with_evidence(row)["evidence"]}) for row in test)
    every, some = (found[f"{title}, by token"] for title in
                   ("All test documents", "Labels drawn, gradients too"))  # fmt: skip
    assert {one["pairs"] for one in every.values()} == {pairs}
    assert {one["pairs"] for one in some.values()} == {LABELS_DRAWN}
    assert len(some) == len(every) + 4
    # Each pair is in one band, and every document's word is one token here.
    assert sum(band["pairs"] for band in found["bands"].values()) == pairs
    by_word = found["All test documents, by word"]
    for method in ("gain alone (static MIG)", "attention, combined"):
        assert by_word[method]["auprc"] == pytest.approx(every[method]["auprc"])


def test_the_measured_classifier_is_named_by_its_own_report(
    found: dict[str, Any], run: Path
) -> None:
    # The tiny report has no cutoff of 5: only what is there is told.
    text = (run / "report/report.json").read_text()
    measured = next(iter(json.loads(text)["systems"].values()))["metrics"]
    assert found["model"]["map"] == measured["map"]
    assert "p@5" not in measured
    assert "p@5" not in found["model"]


def test_gains_point_at_the_words_that_make_the_labels(found: dict[str, Any]) -> None:
    by_method = found["All test documents, by token"]
    for method in ("gain alone (static MIG)", "attention, static"):
        for measure in ("auprc", "token_f1", "span_f1"):
            assert by_method[method][measure] > 0.9
        interval = by_method[method]["intervals"]["auprc"]
        assert 0.85 < interval["low"] <= interval["value"] <= interval["high"] <= 1.0
    # Chance is the share of the gold tokens, some 2 of 30.
    assert by_method["random"]["auprc"] < 0.4
    for method in ("attention, combined", "contribution to the logit"):
        assert by_method[method]["auprc"] > 2 * by_method["random"]["auprc"]
        assert found["ahead"][method]["random"]["low"] > 0


def test_the_model_rests_on_what_its_static_branch_attends(found: dict[str, Any]) -> None:
    faithful = found["faithfulness"]
    chance = faithful["random"]
    for method in ("attention, static", "contribution to the logit"):
        assert faithful[method]["comprehensiveness"]["value"] > chance["comprehensiveness"]["value"]
        assert faithful[method]["sufficiency"]["value"] < chance["sufficiency"]["value"]
    assert len(faithful) == 7
    assert faithful.keys() <= found["Labels drawn, gradients too, by token"].keys()


def test_gradients_are_kept_and_read_again(found: dict[str, Any], run: Path) -> None:
    kept = sorted((run / "attributions").glob("*/*.npz"))
    assert len(kept) == LABELS_DRAWN + LABELS_DRAWN // 2
    with np.load(kept[0]) as one:
        halved = {name: values / 2 for name, values in one.items()}
    before = [path.stat().st_mtime_ns for path in kept[1:]]
    kept[0].unlink()
    np.savez(kept[0], **halved)
    assert bench(run, "again").returncode == 0
    assert [path.stat().st_mtime_ns for path in kept[1:]] == before
    # No measure hangs on the scale of a label's scores.
    again = json.loads((run.parent / "results/plausibility-again.json").read_text())
    for level in ("token", "word"):
        name = f"Labels drawn, gradients too, by {level}"
        assert again[name] == found[name]


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
