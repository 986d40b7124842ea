"""A checkpoint as a classifier folder: the same weights, the same predictions, on one process."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from plant_dist.cli import main
from plant_dist.runtime.checkpoint import Checkpoints, TrainingState
from plant_dist.runtime.context import RunContext
from plant_dist.stages import consolidate
from plant_dist.stages.belongings import Belongings
from plant_dist.stages.saved import SavedClassifier


@pytest.fixture
def training(run_copy: Path) -> Path:
    """A run whose classifier is a checkpoint still."""
    model = SavedClassifier.load(run_copy / "classifier", torch.device("cpu")).model
    shutil.rmtree(run_copy / "classifier")
    optimizer = torch.optim.AdamW(model.parameters())
    state = TrainingState(
        model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer),
        attachments=[Belongings(model, run_copy / "dataset")],
    )  # fmt: skip
    Checkpoints(run_copy / "checkpoints" / "train", RunContext()).save(state, {}, 7, best=7)
    return run_copy


def predicted(model: Path, texts: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    assert (
        main(["predict", "--model", str(model), "--top-k", "2", "--device", "cpu", str(texts)]) == 0
    )
    return capsys.readouterr().out.splitlines()


@pytest.mark.pipeline
@pytest.mark.parametrize("file_bytes", [1 << 30, 5_000])
def test_a_checkpoint_becomes_a_classifier_that_predicts_alike(
    finished: Path, training: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], file_bytes: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(consolidate, "FILE_BYTES", file_bytes)
    out = tmp_path / "model"
    assert main(["export", "--model", str(training), "--out", str(out)]) == 0
    assert "step 7" in capsys.readouterr().out
    files = sorted(path.name for path in out.glob("model*.safetensors"))
    assert (files == ["model.safetensors"]) == (file_bytes > 5_000)
    made = SavedClassifier.load(out, torch.device("cpu"))
    whole = SavedClassifier.load(finished / "run" / "classifier", torch.device("cpu"))
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(made.model.state_dict()[name], tensor), name
    assert made.label_space.digest == whole.label_space.digest
    assert made.thresholds is None
    texts = tmp_path / "texts.txt"
    texts.write_text("cold fever cough\nbroken leg\n")
    mine = [json.loads(line) for line in predicted(out, texts, capsys)]
    theirs = [json.loads(line) for line in predicted(finished / "run/classifier", texts, capsys)]
    ids = [[one["id"] for one in document["labels"]] for document in mine]
    assert ids == [[one["id"] for one in document["labels"]] for document in theirs]


@pytest.mark.pipeline
def test_a_finished_run_and_none_at_all(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", str(finished / "run"), "--out", str(tmp_path / "a")]) == 0
    before, after = finished / "run/classifier/model.safetensors", tmp_path / "a/model.safetensors"
    assert after.read_bytes() == before.read_bytes()
    assert main(["export", "--model", str(tmp_path / "b"), "--out", str(tmp_path / "c")]) == 4
    assert "neither a classifier nor a checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
