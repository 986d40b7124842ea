"""An AWD-LSTM as the encoder: trained by `lm`, read by every later stage, in both directions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_corpus import rows, write_jsonl

from plant_dist.artifacts import read_manifest
from plant_dist.cli import main

pytestmark = pytest.mark.pipeline
LSTM = (
    "encoder.kind=awd_lstm", "lstm.width=16", "lstm.inner_width=24", "lstm.layers=2",
    "lm.epochs=2", "lm.tokens_per_batch=400", "rank.epochs=1", "train.epochs=1",
    "evaluate.baselines=[encoder]", "train.optim.unfreeze_epochs=[0,0.5]",
)  # fmt: skip


def words(folder: Path, run: Path, *settings: str) -> list[str]:
    chosen = [word for setting in (*LSTM, *settings) for word in ("--set", setting)]
    return ["--config", str(folder / "config.yaml"), "--output", str(run), *chosen]


@pytest.fixture(scope="module")
def forward(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("lstm") / "run"
    assert main(["run", *words(inputs, run), "--debug"]) == 0
    return run


def test_perplexity_is_reported_beside_the_unigram_and_drawn(forward: Path) -> None:
    report = json.loads((forward / "language_model" / "report.json").read_text())
    assert 1 < report["best_metrics"]["perplexity"] < 40
    assert 1 < report["best_metrics"]["unigram_perplexity"] < 40
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = EventAccumulator(str(forward / "tensorboard" / "lm"))
    curves.Reload()
    for name in ("perplexity", "unigram_perplexity", "loss"):
        assert [point.step for point in curves.Scalars(f"2_validation/{name}")]


def test_later_stages_hang_on_the_language_model(
    inputs: Path, forward: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = read_manifest(forward / "language_model")
    assert made is not None
    for name in ("ranker", "classifier", "report"):
        manifest = read_manifest(forward / name)
        assert manifest is not None
        assert manifest.parents["language_model"] == made.digest
    for changed, state in (("lm.epochs=2", "up to date"), ("lm.epochs=3", "would run: settings")):
        assert main(["run", *words(inputs, forward, changed), "--dry-run"]) == 0
        plan = capsys.readouterr().out
        assert f"\nlm       {state}" in plan
        assert "encoder  AWD-LSTM, forward: 0.0 M parameters, 16 wide" in plan


def test_the_classifier_folder_predicts_by_itself(
    forward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = Path(shutil.copytree(forward / "classifier", tmp_path / "moved"))
    texts = write_jsonl(tmp_path / "texts.jsonl", rows()[:4])
    capsys.readouterr()
    assert (
        main(["predict", "--model", str(moved), str(texts), "--top-k", "2", "--tokens", "1"]) == 0
    )
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(record["labels"]) for record in records] == [2] * 4


def test_a_trained_language_model_is_an_encoder_by_name(
    inputs: Path, forward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = words(inputs, tmp_path / "run", "encoder.kind=transformers",
                   f"encoder.name={forward / 'language_model'}", "encoder.cache=fp16",
                   "train.optim.freeze_encoder=true", "rank.kind=contextual")  # fmt: skip
    assert main(["run", *chosen, "--debug"]) == 0
    assert not (tmp_path / "run" / "language_model").exists()
    assert "run/language_model" not in capsys.readouterr().out
    assert (tmp_path / "run" / "report" / "report.json").is_file()


def test_backward_from_a_start_and_what_does_not_fit_is_named(
    inputs: Path, forward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, start = tmp_path / "run", f"lm.start={forward / 'language_model'}"
    assert main(["prepare", *words(inputs, run)]) == 0
    assert main(["lm", *words(inputs, run, start, "lstm.direction=backward")]) == 2
    assert "has backward False, the section lstm asks for True" in capsys.readouterr().err
    assert main(["lm", *words(inputs, run, f"lm.start={inputs / 'encoder'}")]) == 2
    assert "holds a bert, not an awd_lstm" in capsys.readouterr().err
    assert main(["lm", *words(inputs, run, f"lm.start={tmp_path}")]) == 2
    assert f"lm: lm.start {tmp_path} cannot be loaded: " in capsys.readouterr().err
    assert main(["lm", *words(inputs, run, "encoder.kind=transformers")]) == 2
    assert "needs no stage lm" in capsys.readouterr().err
    assert main(["rank", *words(inputs, run, "encoder.kind=awd_lstm")]) == 4
    assert main(["lm", *words(inputs, run, start, "lm.epochs=1")]) == 0
    first = json.loads((forward / "language_model" / "report.json").read_text())["best_metrics"]
    again = json.loads((run / "language_model" / "report.json").read_text())["best_metrics"]
    assert again["loss"] <= first["loss"] + 0.01
    config = json.loads((run / "language_model" / "config.json").read_text())
    assert config["model_type"] == "awd_lstm"
    assert not config["backward"]


def test_forward_and_backward_are_averaged(
    inputs: Path, forward: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    average = f"evaluate.average_with={forward / 'classifier'}"
    chosen = words(inputs, run, "lstm.direction=backward", average, "evaluate.baselines=[]")
    assert main(["run", *chosen, "--debug"]) == 0
    report = json.loads((run / "report" / "report.json").read_text())
    assert list(report["systems"]) == ["PLANT", "PLANT, averaged"]
    manifests = [read_manifest(one) for one in (forward / "classifier", run / "report")]
    assert manifests[1].sources == {"averaged 1": manifests[0].digest}
    assert json.loads((run / "classifier" / "config.json").read_text())["encoder"]["backward"]
    # The report's figures are those of the means that `predict` gives.
    test = [row for row in rows() if row["split"] == "test"]
    texts = write_jsonl(tmp_path / "texts.jsonl", test)
    scores: dict[str, list[dict[str, float]]] = {}
    for name, more in {
        "forward": ["--model", str(forward / "classifier")],
        "backward": ["--model", str(run / "classifier")],
        "both": ["--model", str(run / "classifier"), "--average-with", str(forward / "classifier")],
    }.items():
        capsys.readouterr()
        assert main(["predict", *more, str(texts), "--top-k", "13", "--tokens", "1"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        scores[name] = [{one["id"]: one["score"] for one in r["labels"]} for r in records]
    hits = 0
    for row, one, other, both in zip(test, *scores.values(), strict=True):
        for label, score in both.items():
            assert score == pytest.approx((one[label] + other[label]) / 2, abs=2e-6)
        hits += max(both, key=both.__getitem__) in row["labels"]
    metrics = report["systems"]["PLANT, averaged"]["metrics"]
    assert metrics["p@1"] == pytest.approx(hits / len(test), abs=1e-9)
    assert "micro_f1" in metrics


def test_what_cannot_be_averaged_is_named(
    inputs: Path, forward: Path, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = words(inputs, forward, f"evaluate.average_with={tmp_path}")
    assert main(["evaluate", *absent]) == 4
    assert "is no classifier of this program" in capsys.readouterr().err
    other = Path(shutil.copytree(finished / "run" / "classifier", tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "segment_tokens": 20}))
    texts = write_jsonl(tmp_path / "texts.jsonl", rows()[:2])
    assert main(["predict", "--model", str(forward / "classifier"), "--average-with", str(other),
                 str(texts)]) == 4  # fmt: skip
    assert "cuts documents into other segments" in capsys.readouterr().err
