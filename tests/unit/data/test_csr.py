"""Flat arrays against plain Python lists."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.data.csr import csr_from_column, csr_from_lists, open_csr, write_column
from plant_dist.errors import ArtifactError

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=8)


def as_lists(csr):
    return [csr.row(index).tolist() for index in range(csr.size)]


@settings(deadline=None)
@given(rows=ROWS, data=st.data())
def test_take_lengths_owners_and_sorting_agree_with_lists(rows, data):
    csr = csr_from_lists(rows)
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if rows else []
    assert as_lists(csr) == rows
    assert csr.lengths().tolist() == [len(row) for row in rows]
    assert csr.owners().tolist() == [at for at, row in enumerate(rows) for _ in row]
    assert as_lists(csr.sorted_rows()) == [sorted(row) for row in rows]
    assert as_lists(csr.take(np.array(chosen, np.int64))) == [rows[at] for at in chosen]


@pytest.mark.parametrize("chunks", [[], [[]], [[[]]], [[[1, 2], []], [[3]], [[], [4, 5, 6]]]])
def test_arrow_columns_survive_chunking_and_disk(tmp_path: Path, chunks):
    kind = pa.list_(pa.int32())
    column = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
    rows = [row for chunk in chunks for row in chunk]
    assert as_lists(csr_from_column(column)) == rows
    write_column(column, tmp_path, "tokens")
    mapped = open_csr(tmp_path, "tokens")
    assert as_lists(mapped) == rows
    assert (mapped.offsets.dtype, mapped.values.dtype) == (np.int64, np.int32)


def test_a_sliced_arrow_column_keeps_its_own_rows():
    whole = pa.chunked_array([pa.array([[1], [2, 3], [4]], pa.list_(pa.int32()))])
    assert as_lists(csr_from_column(whole.slice(1, 2))) == [[2, 3], [4]]


def test_saved_arrays_are_memory_mapped_and_a_truncated_one_is_refused(tmp_path: Path):
    csr_from_lists([[7, 8], [9]]).save(tmp_path, "labels")
    mapped = open_csr(tmp_path, "labels")
    assert isinstance(mapped.values, np.memmap)
    assert as_lists(mapped) == [[7, 8], [9]]
    path = tmp_path / "labels.values.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ArtifactError, match="labels"):
        open_csr(tmp_path, "labels")


def test_cut_keeps_the_first_values_of_each_row() -> None:
    rows = csr_from_lists([[1, 2, 3], [], [4], [5, 6]])
    cut = rows.cut(2)
    assert [cut.row(i).tolist() for i in range(4)] == [[1, 2], [], [4], [5, 6]]
