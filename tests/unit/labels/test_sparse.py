"""Rows that are fetched and moved a few at a time: what a step sees, moves, saves and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plant_dist.errors import ArtifactError, ConfigError, DataError
from plant_dist.labels import files, sparse
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.table import LabelTable
from plant_dist.labels.updates import LazyAdam, RowAdagrad

WIDTHS = {"query": 4, "bias": 1, "gate": 3}


def table(count: int = 10, **optimizer: object) -> ReplicatedRows:
    torch.manual_seed(0)
    return ReplicatedRows(count, WIDTHS, optimizer.get("by", RowAdagrad()), ("gate",))


def rated(rows: ReplicatedRows, rate: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"params": list(rows.fields.values()), "lr": rate}])


def laid_out(rows: sparse.SparseRows, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return rows.fetch(ids).columns(0, ids.shape[1])


@pytest.mark.parametrize(("count", "piece"), [(100, 16), (97, 16), (33, 32), (5, 16)])
def test_rows_start_as_those_of_the_dense_table(
    monkeypatch: pytest.MonkeyPatch, count: int, piece: int
) -> None:
    monkeypatch.setattr(sparse, "DRAWN_ROWS", piece)
    widths = {"query": 3, "boost": 5, "bias": 1}
    torch.manual_seed(4)
    dense = LabelTable(count, widths)
    torch.manual_seed(4)
    rows = ReplicatedRows(count, widths, RowAdagrad())
    for name, field in dense.fields.items():
        assert rows.fields[name].equal(field), name
    # And what is drawn next is the same, too.
    drawn = torch.rand(3)
    torch.manual_seed(4)
    LabelTable(count, widths)
    assert drawn.equal(torch.rand(3))


def test_a_batch_fetches_each_label_once_and_lays_rows_out_by_document() -> None:
    rows = table()
    ids = torch.tensor([[3, 9, 3], [0, 3, 9]])
    fetched = rows.fetch(ids)
    assert all(len(field) == 3 for field in fetched.rows.values())
    assert fetched.count == 3
    for name, field in rows.fields.items():
        assert fetched.columns(1, 3)[name].equal(field[ids[:, 1:3]])


def test_a_step_moves_touched_rows_by_the_gradient_summed_over_documents() -> None:
    rows = table()
    before = {name: field.detach().clone() for name, field in rows.fields.items()}
    rows.begin(rated(rows))
    # Label 3 stands in both documents: gradients 1 + 2; label 9 in one: 5.
    found = laid_out(rows, torch.tensor([[3], [3]]))["query"]
    (found * torch.tensor([1.0, 2.0]).view(2, 1, 1)).sum().backward()
    (laid_out(rows, torch.tensor([[9]]))["query"] * 5).sum().backward()
    rows.step()
    # Adagrad's first step is the rate, whatever the size of the gradient.
    moved = before["query"] - rows.fields["query"]
    assert moved[[3, 9]].flatten().tolist() == pytest.approx([0.1] * 8, rel=1e-5)
    assert rows.state_of("query")["sum"][[3, 9], 0].tolist() == [9.0, 25.0]
    untouched = [n for n in range(10) if n not in (3, 9)]
    assert not moved[untouched].any()
    # A field that the loss did not ask for stays.
    assert rows.fields["bias"].equal(before["bias"])


def test_gradients_before_the_step_began_count_for_nothing() -> None:
    rows = table()
    before = rows.fields["query"].detach().clone()
    laid_out(rows, torch.tensor([[3]]))["query"].sum().backward()
    rows.begin(rated(rows))
    rows.step()
    assert rows.fields["query"].equal(before)


def test_a_frozen_field_stays_and_has_no_state(tmp_path: Path) -> None:
    rows = table()
    rows.fields["query"].requires_grad_(False)
    before = rows.fields["query"].detach().clone()
    rows.begin(rated(rows))
    found = laid_out(rows, torch.tensor([[3]]))
    (found["query"].sum() + found["bias"].sum()).backward()
    rows.step()
    rows.save(tmp_path)
    assert rows.fields["query"].equal(before)
    assert rows.fields["bias"][3].item() == pytest.approx(-0.1)
    [(_, _, piece)] = files.pieces(tmp_path)
    with files.safe_open(piece, framework="pt") as opened:
        assert "bias.sum" in opened.keys()  # noqa: SIM118
        assert "query.sum" not in opened.keys()  # noqa: SIM118


def test_nothing_is_recorded_without_gradients() -> None:
    rows = table()
    with torch.no_grad():
        assert rows.fetch().columns(2, 4)["query"].equal(rows.fields["query"][None, 2:4])
        rows.fetch(torch.tensor([[1]]))
    rows.begin(rated(rows))
    rows.step()
    assert rows.steps == 0


@pytest.mark.parametrize("label", [-1, 10, 1_000_003])
@pytest.mark.parametrize("kind", [LabelTable, table])
def test_a_label_id_out_of_range_is_named(label: int, kind: type) -> None:
    rows = LabelTable(10, WIDTHS) if kind is LabelTable else table()
    with pytest.raises(DataError, match=rf"label id {label} is out of range.* 10 labels, 0 to 9"):
        rows.fetch(torch.tensor([[1, label]]))


def test_no_label_and_no_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 labels"):
        table(0)
    with pytest.raises(ConfigError, match="query has width 0"):
        ReplicatedRows(3, {"query": 0}, RowAdagrad())


# Files.


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(files, "PIECE_LABELS", 4)
    rows = table()
    rows.begin(rated(rows))
    laid_out(rows, torch.tensor([[3, 9]]))["query"].sum().backward()
    rows.step()
    rows.save(tmp_path)
    return tmp_path


def test_pieces_hold_every_label_once_with_its_state(saved: Path) -> None:
    spans = [(start, stop) for start, stop, _ in files.pieces(saved)]
    assert spans == [(0, 4), (4, 8), (8, 10)]
    other = table()
    other.fields["query"].data.zero_()
    other.load(saved)
    assert other.steps == 1
    assert other.state_of("query")["sum"][:, 0].nonzero()[:, 0].tolist() == [3, 9]
    third = table()
    third.load(saved, resume=False)
    assert third.steps == 0
    assert third.fields["query"].equal(other.fields["query"])


def test_rows_of_another_table_or_optimizer_are_refused(saved: Path) -> None:
    with pytest.raises(ArtifactError, match="labels 10, the model of 11"):
        table(11).load(saved)
    wider = ReplicatedRows(10, {**WIDTHS, "query": 5}, RowAdagrad())
    with pytest.raises(ArtifactError, match=r"the model of .*'query': 5"):
        wider.load(saved)
    with pytest.raises(ArtifactError, match=r"moved by adagrad.*set labels\.optimizer=adagrad"):
        table(by=LazyAdam()).load(saved)


def test_missing_and_cut_pieces_are_named(saved: Path) -> None:
    middle = saved / files.piece_name(4, 8)
    whole = middle.read_bytes()
    middle.write_bytes(whole[:-20])
    with pytest.raises(ArtifactError, match=r"rows-000000000004-000000000008.* cannot be read"):
        table().load(saved)
    middle.unlink()
    with pytest.raises(ArtifactError, match="lacks the rows of label 4"):
        table().load(saved)
    about = saved / files.ABOUT
    about.write_text(json.dumps({**json.loads(about.read_text()), "format": 9}))
    with pytest.raises(ArtifactError, match="format 9; this is 1"):
        table().load(saved)
    about.unlink()
    with pytest.raises(ArtifactError, match="holds no label rows"):
        table().load(saved)
