"""Prediction from a classifier folder alone: order, ids, choice of labels, evidence, formats."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_corpus import LABELS, UNSEEN, rows, words_of, write_jsonl
from transformers import AutoModelForSequenceClassification

from plant_dist.cli import main
from plant_dist.models.classifier import register

pytestmark = pytest.mark.pipeline
TEST = [row for row in rows() if row["split"] == "test"]


@pytest.fixture
def texts(tmp_path: Path) -> str:
    """The test documents, without their labels."""
    bare = [{"id": row["id"], "text": row["text"]} for row in TEST]
    return str(write_jsonl(tmp_path / "texts.jsonl", bare))


@pytest.fixture
def predict(model_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `predict` with the moved model and return its records."""

    def run(*words: str) -> list[dict[str, Any]]:
        capsys.readouterr()
        assert main(["predict", "--model", str(model_copy), "--debug", *words]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def chosen(record: dict[str, Any]) -> list[str]:
    return [label["id"] for label in record["labels"]]


def test_the_folder_names_no_place_of_the_training(finished: Path, model_copy: Path) -> None:
    for path in model_copy.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert str(finished).encode() not in path.read_bytes(), path
    assert not list(model_copy.rglob("*.bin"))


def test_thresholds_of_validation_give_the_reported_f1(
    predict: Any, texts: str, finished: Path
) -> None:
    records = predict(texts, "--batch", "7")
    assert [record["id"] for record in records] == [row["id"] for row in TEST]
    right = sum(len({*chosen(r)} & {*t["labels"]}) for r, t in zip(records, TEST, strict=True))
    total = sum(len(chosen(r)) for r in records) + sum(len(t["labels"]) for t in TEST)
    report = json.loads((finished / "run/report/report.json").read_text())
    metrics = report["systems"]["PLANT"]["metrics"]
    assert 2 * right / total == pytest.approx(metrics["micro_f1"], abs=1e-9)


def test_top_k_gives_the_reported_precision(predict: Any, texts: str, finished: Path) -> None:
    records = predict(texts, "--top-k", "3")
    assert all(len(record["labels"]) == 3 for record in records)
    hits = [len({*chosen(r)} & {*t["labels"]}) / 3 for r, t in zip(records, TEST, strict=True)]
    report = json.loads((finished / "run/report/report.json").read_text())
    assert np.mean(hits) == pytest.approx(report["systems"]["PLANT"]["metrics"]["p@3"], abs=1e-9)
    for record in records:
        scores = [label["score"] for label in record["labels"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)
        assert all(
            label["name"] == " ".join(words_of(label["id"]))
            for label in record["labels"] if label["id"] != UNSEEN
        )  # fmt: skip


def test_more_labels_than_there_are_gives_all(predict: Any, texts: str) -> None:
    assert set(chosen(predict(texts, "--top-k", "99")[0])) == {*LABELS, UNSEEN}


def test_a_threshold_cuts_the_ranking(predict: Any, texts: str) -> None:
    everything = predict(texts, "--top-k", "13")
    above = predict(texts, "--threshold", "0.4")
    for ranked, cut in zip(everything, above, strict=True):
        assert cut["labels"] == [one for one in ranked["labels"] if one["score"] >= 0.4]
    highest = max(one["score"] for one in everything[0]["labels"])
    assert predict(texts, "--threshold", f"{(1 + highest) / 2:.9f}")[0]["labels"] == []


def test_tokens_are_the_words_that_speak_for_the_label(predict: Any, texts: str) -> None:
    records = predict(texts, "--top-k", "1", "--tokens", "2")
    for record, row in zip(records, TEST, strict=True):
        [label] = record["labels"]
        assert 1 <= len(label["tokens"]) <= 2
        for token in label["tokens"]:
            assert row["text"][token["start"] : token["end"]] == token["text"]
        # The best-attended word, though the text begins with a capital.
        assert label["tokens"][0]["text"].lower() in words_of(label["id"])
        weights = [token["weight"] for token in label["tokens"]]
        assert weights == sorted(weights, reverse=True)


def test_attended_special_tokens_do_not_shift_the_offsets(
    predict: Any, texts: str, model_copy: Path
) -> None:
    path = model_copy / "config.json"
    config = json.loads(path.read_text())
    config["decoder"]["attend_special"] = True
    path.write_text(json.dumps(config))
    records = predict(texts, "--top-k", "1", "--tokens", "1")
    named = [r["labels"][0]["tokens"][0]["text"].lower() in words_of(r["labels"][0]["id"])
             for r in records]  # fmt: skip
    assert np.mean(named) > 0.9


def test_a_calibration_changes_scores_and_thresholds_not_the_ranking(
    predict: Any, texts: str, model_copy: Path
) -> None:
    raw = predict(texts, "--top-k", "13")
    bands = [
        {"band": band, "pairs": 1, "positives": 1, "own": True, "temperature": 2.0}
        for band in ("0", "1-5", "6-10", "11-50", "51-100", ">100")
    ]
    content = {"kind": "temperature", "fitted_on": "validation", "bands": bands}
    (model_copy / "calibration.json").write_text(json.dumps(content))
    words = ["predict", "--model", str(model_copy), texts]
    # Thresholds tuned on the model's own scores do not fit calibrated ones.
    assert main(words) == 4
    path = model_copy / "thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "calibrated": True}))
    softer, above = predict(texts, "--top-k", "13"), predict(texts, "--threshold", "0.4")
    for before, after, cut in zip(raw, softer, above, strict=True):
        assert (before["calibrated"], after["calibrated"]) == (False, True)
        assert chosen(after) == chosen(before)
        # σ(z/2) from σ(z), which is given to six digits: 1 stands for all from 1 - 5e-7 on.
        for was, now in zip(before["labels"], after["labels"], strict=True):
            root = math.sqrt(was["score"] / max(1 - was["score"], 5e-7))
            assert now["score"] == pytest.approx(root / (1 + root), abs=1e-3)
        assert cut["labels"] == [one for one in after["labels"] if one["score"] >= 0.4]


def test_formats_give_the_same_labels(
    predict: Any, texts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [chosen(record) for record in predict(texts, "--top-k", "2")]
    csv = tmp_path / "texts.csv"
    csv.write_text("key,note\n" + "".join(f'{r["id"]},"{r["text"]}"\n' for r in TEST))
    found = predict(str(csv), "--top-k", "2", "--text-column", "note", "--id-column", "key")
    assert [record["id"] for record in found] == [row["id"] for row in TEST]
    assert [chosen(record) for record in found] == expected
    lines = "".join(row["text"] + "\n" for row in TEST)
    (tmp_path / "texts.txt").write_text(lines)
    found = predict(str(tmp_path / "texts.txt"), "--top-k", "2")
    assert [chosen(record) for record in found] == expected
    assert [record["id"] for record in found] == [str(n) for n in range(1, len(TEST) + 1)]
    for content in (lines, Path(texts).read_text()):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content.encode())))
        assert [chosen(record) for record in predict("--top-k", "2")] == expected


def test_a_file_appears_only_when_all_is_written(
    predict: Any, texts: str, tmp_path: Path, model_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(texts, "--out", str(tmp_path / "out.jsonl")) == []
    kept = (tmp_path / "out.jsonl").read_text()
    assert len(kept.splitlines()) == len(TEST)
    with open(texts, "a", encoding="utf-8") as stream:
        stream.write('{"id": "broken"\n')
    words = ["predict", "--model", str(model_copy), texts, "--out", str(tmp_path / "out.jsonl")]
    assert main(words) == 3
    assert f"texts.jsonl:{len(TEST) + 1}: not JSON" in capsys.readouterr().err
    assert (tmp_path / "out.jsonl").read_text() == kept
    assert not list(tmp_path.glob(".*.partial"))


def test_a_config_names_the_model_too(
    predict: Any, finished: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = predict(texts)
    assert main(["predict", "--config", str(finished / "config.yaml"), texts]) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected


def test_a_dry_run_checks_the_model_and_reads_nothing(
    predict: Any, model_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", "--model", str(model_copy), "no-such-file.jsonl", "--dry-run"]
    assert main(words) == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert f"holds {len(LABELS) + 1} labels; labels above their threshold" in said.err


def test_the_auto_classes_open_the_folder(model_copy: Path) -> None:
    register()
    model = AutoModelForSequenceClassification.from_pretrained(model_copy)
    assert type(model).__name__ == "PlantForMultiLabelClassification"
    assert model.config.label_count == len(LABELS) + 1


def test_the_input_is_never_overwritten(
    texts: str, model_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(texts).read_text()
    assert main(["predict", "--model", str(model_copy), texts, "--out", texts]) == 2
    assert "is the file that is read; name another" in capsys.readouterr().err
    assert Path(texts).read_text() == before


def test_ids_are_those_of_a_named_column_or_refused(
    predict: Any, model_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"id": None, "note": "n7", "text": "a"}, {"note": "n8", "text": "b"}]
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows))
    assert [one["id"] for one in predict(path)] == ["1", "2"]
    assert [one["id"] for one in predict(path, "--id-column", "note")] == ["n7", "n8"]
    assert main(["predict", "--model", str(model_copy), path, "--id-column", "note_id"]) == 3
    assert "no column 'note_id'; columns found: id, note, text; set --id-column" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "x.jsonl"], "--output goes with --config, and --model needs none; for a fi"),
        (["--set", "seed=1"], "--set goes with --config, and --model needs none"),
    ],
)
def test_words_that_would_count_for_nothing_are_refused(
    texts: str, model_copy: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--model", str(model_copy), texts, *words]) == 2
    assert said in capsys.readouterr().err


def test_a_run_folder_and_a_folder_of_texts_are_told_from_what_was_meant(
    finished: Path, model_copy: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = finished / "run"
    assert main(["predict", "--model", str(run), texts]) == 4
    assert f"{run} holds no classifier (no config.json); name {run}/classifier" in (
        capsys.readouterr().err
    )
    assert main(["predict", "--model", str(model_copy), str(Path(texts).parent)]) == 3
    assert "is a folder; name a file in it" in capsys.readouterr().err
