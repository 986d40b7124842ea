"""Three classifiers of other seeds, trained on shortlists over one frozen encoder, as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_corpus import rows, write_jsonl

from plant_dist.artifacts import read_manifest
from plant_dist.cli import main

SETTINGS = ("train.labels=shortlist", "train.optim.freeze_encoder=true", "evaluate.baselines=[]",
            "shortlist.labels_per_document=8", "shortlist.candidates=8")  # fmt: skip


def words(config: str, folder: Path, seed: int, *more: str) -> list[str]:
    places = (f"output={folder / str(seed)}", f"encoder.cache_folder={folder / 'states'}")
    settings = (*SETTINGS, "encoder.cache=fp16", f"seed={seed}", *places, *more)
    return ["--config", config, *(word for one in settings for word in ("--set", one))]


def test_three_seeds_are_averaged(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1, 2):
        assert main(["run", *words(config, tmp_path, seed)]) == 0
    folders = [tmp_path / str(seed) / "classifier" for seed in (0, 1, 2)]
    average = f"evaluate.average_with=[{folders[0]},{folders[1]}]"
    assert main(["evaluate", *words(config, tmp_path, 2, average)]) == 0
    report = tmp_path / "2" / "report"
    manifests = [read_manifest(one) for one in (*folders[:2], report)]
    assert manifests[2].sources == {f"averaged {n + 1}": manifests[n].digest for n in (0, 1)}
    # By hand: the mean of what each says of every label.
    test = [row for row in rows() if row["split"] == "test"]
    texts = write_jsonl(tmp_path / "texts.jsonl", test)
    beside = ["--average-with", str(folders[0]), "--average-with", str(folders[1])]
    scores = []
    for model, more in [*((folder, ["--exact"]) for folder in folders), (folders[2], beside)]:
        capsys.readouterr()
        assert main(["predict", "--model", str(model), *more, str(texts), "--top-k", "13"]) == 0
        records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        scores.append([{one["id"]: one["score"] for one in r["labels"]} for r in records])
    hits = 0
    for row, *alone, mean in zip(test, *scores, strict=True):
        for label, score in mean.items():
            assert score == pytest.approx(sum(one[label] for one in alone) / 3, abs=2e-6)
        hits += max(mean, key=mean.__getitem__) in row["labels"]
    found = json.loads((report / "report.json").read_text())["systems"]
    assert list(found) == ["PLANT", "PLANT, averaged"]
    assert found["PLANT, averaged"]["metrics"]["p@1"] == pytest.approx(hits / len(test), abs=1e-9)
    # Twice another, or itself.
    for others in ((folders[0], folders[0]), (folders[2],)):
        twice = [word for one in others for word in ("--average-with", str(one))]
        assert main(["predict", "--model", str(folders[2]), *twice, str(texts)]) == 4
        assert "name each once" in capsys.readouterr().err
