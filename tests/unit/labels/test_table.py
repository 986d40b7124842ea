"""Rows of label parameters: what is stored, what is fetched, what learns."""

from __future__ import annotations

import pytest
import torch

from plant_dist.errors import ConfigError
from plant_dist.labels.table import LabelTable

WIDTHS = {"query": 4, "bias": 1, "gate": 3}


def test_fields_keep_their_order_shapes_and_names() -> None:
    table = LabelTable(10, WIDTHS)
    assert [(name, tuple(rows.shape)) for name, rows in table.fields.items()] == [
        ("query", (10, 4)),
        ("bias", (10, 1)),
        ("gate", (10, 3)),
    ]
    assert list(table.state_dict()) == ["fields.query", "fields.bias", "fields.gate"]
    assert table.count == 10


def test_rows_start_with_length_one_on_average_and_named_fields_at_zero() -> None:
    torch.manual_seed(0)
    table = LabelTable(4000, {"query": 64, "bias": 1, "gate": 3}, zero=("gate",))
    assert table.fields["query"].square().sum(1).mean().item() == pytest.approx(1.0, abs=0.02)
    assert table.fields["query"].mean().item() == pytest.approx(0.0, abs=0.002)
    assert not table.fields["bias"].any()
    assert not table.fields["gate"].any()


def test_the_same_generator_state_gives_the_same_rows() -> None:
    one, other = LabelTable(5, WIDTHS), LabelTable(5, WIDTHS)
    assert not one.fields["query"].equal(other.fields["query"])
    one.reset(torch.Generator().manual_seed(3))
    other.reset(torch.Generator().manual_seed(3))
    assert one.fields["query"].equal(other.fields["query"])


def test_columns_and_rows_are_of_the_labels_asked_for() -> None:
    table = LabelTable(10, WIDTHS)
    ids = torch.tensor([[3, 9], [0, 3]])
    columns, rows = table.fetch().columns(2, 7), table.rows(ids)
    for name, stored in table.fields.items():
        assert columns[name][0].equal(stored[2:7])
        assert columns[name].data_ptr() == stored[2:].data_ptr()
        assert rows[name].equal(stored[ids])
    # Fields that nobody reads are not gathered.
    assert table.fetch(ids).columns(0, 2, ("query",)).keys() == {"query"}


def test_a_label_learns_from_every_document_that_fetched_it() -> None:
    table = LabelTable(4, {"query": 2})
    table.rows(torch.tensor([[1, 3], [3, 3]]))["query"].sum().backward()
    gradient = table.fields["query"].grad
    assert gradient is not None
    assert gradient.tolist() == [[0, 0], [1, 1], [0, 0], [3, 3]]


def test_no_label_and_no_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="0 labels"):
        LabelTable(0, WIDTHS)
    with pytest.raises(ConfigError, match="query has width 0"):
        LabelTable(3, {"query": 0})
