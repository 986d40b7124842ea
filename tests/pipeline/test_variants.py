"""Other settings through every stage: states, gates, rankers, decision rules, no validation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_corpus import rows, write_config, write_jsonl

from plant_dist.cli import main

pytestmark = pytest.mark.pipeline
TEST = [row for row in rows() if row["split"] == "test"]
VARIANTS = {
    "logit state, learned gates, contextual ranker": [
        "model.state=logit_state", "model.gates=learned", "rank.kind=contextual",
        "model.query_init=planted", "evaluate.threshold=per_label", "tokens.overlap_tokens=4",
        "train.loss.kind=softmax", "model.rivals_after=2",
        "evaluate.calibration=isotonic", "evaluate.min_band_positives=10",
    ],
    "attention state, shared gates, one thawing, averages": [
        "model.state=attention_state", "model.gates=shared", "train.optim.unfreeze_epochs=[0.5]",
        "train.ema_decay=0.5", "evaluate.threshold=top_k", "train.loss.kind=asl",
        "train.loss.label_weights=effective",
    ],
    "no planting, budget of tokens": [
        "model.branches=[learned]", "train.tokens_per_batch=400", "train.accumulation=2",
        "model.attend_special=true", "train.loss.label_weights=propensity",
        "train.optim.schedule=sgdr", "train.start_share=0.3", "model.narrower_share=0.5",
        "evaluate.calibration=temperature",
    ],
    "static alone, frozen encoder": [
        "model.branches=[static]", "train.optim.freeze_encoder=true", "mig.association=any",
        "rank.init=random", "train.loss.kind=focal", "train.evaluate_epochs=0.4",
    ],
}  # fmt: skip


def predicted(model: Path, capsys: pytest.CaptureFixture[str], *words: str) -> list[Any]:
    texts = write_jsonl(model.parent / "texts.jsonl", TEST)
    capsys.readouterr()
    assert main(["predict", "--model", str(model), str(texts), *words]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def micro_f1(records: list[Any]) -> float:
    chosen = [{label["id"] for label in record["labels"]} for record in records]
    right = sum(len(one & {*row["labels"]}) for one, row in zip(chosen, TEST, strict=True))
    return 2 * right / (sum(map(len, chosen)) + sum(len(row["labels"]) for row in TEST))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_runs_and_predicts_what_was_evaluated(
    finished: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word for setting in VARIANTS[name] for word in ("--set", setting)]
    words += ["--set", "train.epochs=2", "--set", "evaluate.baselines=[]"]
    config, run = str(finished / "config.yaml"), tmp_path / "run"
    assert main(["run", "--config", config, "--output", str(run), *words, "--debug"]) == 0
    # A ranker that nothing is taken of is not trained.
    assert (run / "ranker").exists() == ("model.branches" not in " ".join(words))
    report = json.loads((run / "report" / "report.json").read_text())
    metrics = report["systems"]["PLANT"]["metrics"]
    moved = Path(shutil.move(run / "classifier", tmp_path / "moved"))
    records = predicted(moved, capsys, "--tokens", "2")
    assert micro_f1(records) == pytest.approx(metrics["micro_f1"], abs=1e-9)
    calibrated = any("calibration=" in word for word in words)
    assert (moved / "calibration.json").exists() == calibrated
    assert {record["calibrated"] for record in records} == {calibrated}
    for record, row in zip(records, TEST, strict=True):
        for label in record["labels"]:
            for token in label["tokens"]:
                assert row["text"][token["start"] : token["end"]] == token["text"] != ""


@pytest.mark.parametrize("rule", ["global", "per_label", "top_k"])
def test_each_decision_rule_is_the_one_reported(
    finished: Path, model_copy: Path, rule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = model_copy / "thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rule": rule}))
    report = json.loads((finished / "run/report/report.json").read_text())
    expected = report["systems"]["PLANT"]["decisions"][rule]["micro_f1"]
    assert micro_f1(predicted(model_copy, capsys)) == pytest.approx(expected, abs=1e-9)


def test_without_validation_nothing_is_tuned(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [row for row in rows() if row["split"] != "validation"]
    path = write_jsonl(tmp_path / "docs.jsonl", documents)
    config = write_config(
        tmp_path,
        data={"path": str(path), "validation_fraction": 0.0},
        encoder={"name": str(inputs / "encoder")},
        train={"max_steps": 3, "ema_decay": 0.5},
        rank={"epochs": 1, "width": 8, "validation_fraction": 0.0},
    )
    assert main(["run", "--config", str(config), "--debug"]) == 0
    run = tmp_path / "run"
    report = json.loads((run / "report" / "report.json").read_text())
    for system in report["systems"].values():
        assert "map" in system["metrics"]
        assert "micro_f1" not in system["metrics"]
    assert not (run / "classifier" / "thresholds.json").exists()
    records = predicted(Path(run / "classifier"), capsys)
    assert {len(record["labels"]) for record in records} == {10}


def test_a_share_for_narrower_labels_without_a_hierarchy_says_so(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "data.labels_path=null", "--set", "model.narrower_share=0.5"]
    words += ["--set", "train.max_steps=2", "--set", "evaluate.baselines=[]"]
    config, run = str(finished / "config.yaml"), str(tmp_path / "run")
    assert main(["run", "--config", config, "--output", run, *words, "--debug"]) == 0
    assert "no label has a parent, so it does nothing" in capsys.readouterr().err
