"""Modules kept apart, inside checkpoints and engines: here with rows that one process holds."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from plant_dist.errors import ArtifactError
from plant_dist.labels import files
from plant_dist.labels.files import SavedTable
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.updates import RowAdagrad
from plant_dist.runtime.apart import kept_apart, names_kept_apart
from plant_dist.runtime.checkpoint import Checkpoints, TrainingState
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(4, 4)
        self.table = ReplicatedRows(6, {"boost": 4}, RowAdagrad())

    def forward(self, ids: Tensor) -> Tensor:
        found: Tensor = self.shared(self.table.fetch(ids).columns(0, ids.shape[1])["boost"])
        return found.square().sum()


def made(seed: int) -> TrainingState:
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    return TrainingState(model, optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))


def step(state: TrainingState, *labels: int) -> float:
    state.optimizer.zero_grad()
    state.model.table.begin(state.optimizer)
    loss = state.model(torch.tensor([labels]))
    loss.backward()
    state.optimizer.step()
    state.model.table.step()
    return loss.item()


def test_they_are_found_by_name_inside_a_model() -> None:
    model = Model()
    assert kept_apart(model) == [model.table]
    assert names_kept_apart(model) == {"table.fields.boost"}
    assert names_kept_apart(model.table) == {"fields.boost"}


def test_a_checkpoint_holds_their_rows_and_state_and_goes_on_exactly(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext())
    state = made(0)
    step(state, 1, 2)
    checkpoints.save(state, {"step": 1}, step=1)
    after = [step(state, 1, 5), step(state, 2, 5)]
    other = made(1)
    assert checkpoints.load(other) == {"step": 1}
    assert [step(other, 1, 5), step(other, 2, 5)] == after
    assert other.model.table.fields["boost"].equal(state.model.table.fields["boost"])
    # Once, in files of their own, under the manifest's hashes.
    manifest = json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())
    assert {"rows.json", "rows-000000000000-000000000006.safetensors"} <= manifest["files"].keys()
    for path in (tmp_path / "step-00000001").glob("model-*"):
        assert b"table.fields" not in path.read_bytes()


def test_best_weights_come_back_without_the_state(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext())
    state = made(0)
    step(state, 1, 2)
    rows = state.model.table.fields["boost"].detach().clone()
    checkpoints.save(state, {}, step=1)
    step(state, 1, 2)
    checkpoints.load_weights(1, state.model)
    assert state.model.table.fields["boost"].equal(rows)


def test_what_cannot_write_its_part_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext())
    state = made(0)
    checkpoints.save(state, {"step": 1}, step=1)

    def full(folder: Path, table: SavedTable, steps: int) -> None:
        raise ArtifactError(f"{folder}: label rows cannot be written (disk full)")

    monkeypatch.setattr(files, "save_rows", full)
    for wait in (True, False):

        def save(wait: bool = wait) -> None:
            checkpoints.save(state, {"step": 2}, step=2, wait=wait)
            checkpoints.finish()

        with pytest.raises(ArtifactError, match="label rows cannot be written"):
            save()
        assert checkpoints.latest() == checkpoints.path(1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]


def test_rows_written_beside_training_are_those_of_the_step_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path, RunContext(), beside="always")
    state = made(0)
    step(state, 1, 2)
    go, written = threading.Event(), files.save_rows

    def later(folder: Path, table: SavedTable, steps: int) -> list[Path]:
        assert go.wait(60)
        return written(folder, table, steps)

    monkeypatch.setattr(files, "save_rows", later)
    checkpoints.save(state, {"step": 1}, step=1, wait=False)
    after = [step(state, 1, 5), step(state, 2, 5)]
    go.set()
    checkpoints.finish()
    other = made(1)
    checkpoints.load(other)
    assert [step(other, 1, 5), step(other, 2, 5)] == after


def test_a_model_of_rows_alone_is_prepared() -> None:
    model = Model()
    model.shared.requires_grad_(False)
    engine = Engine(RunContext())
    optimizer = torch.optim.AdamW(model.table.parameters(), lr=0.1)
    wrapped = engine.prepare(model, optimizer)
    assert engine.unwrap(wrapped) is model
    model.table.begin(optimizer)
    before = model.table.fields["boost"].detach().clone()
    engine.backward(wrapped(torch.tensor([[3]])))
    assert engine.update([list(model.table.parameters())], None).applied
    model.table.step()
    moved = (model.table.fields["boost"] - before).abs().sum(1)
    assert moved.nonzero()[:, 0].tolist() == [3]
    engine.release(wrapped)
