"""Ragged integer rows as two flat arrays, in memory or memory-mapped.

A document's tokens and a document's labels are both such rows. Everything that must be fast
(collating, counting, splitting) gathers from here with numpy; no Python object stands for a row.
Must not know what the integers mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from plant_dist.errors import ArtifactError

Int8 = npt.NDArray[np.int8]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


class Csr(NamedTuple):
    """Row i is `values[offsets[i]:offsets[i + 1]]`; unpacks as `offsets, values`.

    Attributes:
        offsets: (N + 1,) int64, starts at 0, never falls.
        values: (nnz,) int32.
    """

    offsets: Int64
    values: Int32

    @property
    def size(self) -> int:
        """Number of rows N (`len` of a named tuple is the number of its fields)."""
        return len(self.offsets) - 1

    def lengths(self) -> Int64:
        """Return (N,) int64, the number of values of each row."""
        return np.diff(self.offsets)

    def owners(self) -> Int64:
        """Return (nnz,) int64, the row that each value belongs to."""
        return np.repeat(np.arange(self.size), self.lengths())

    def row(self, index: int) -> Int32:
        """Return one row, a view."""
        return self.values[self.offsets[index] : self.offsets[index + 1]]

    def take(self, rows: Int64) -> Csr:
        """Return the given rows, in the given order, as a new `Csr`."""
        starts = self.offsets[rows]
        lengths = self.offsets[rows + 1] - starts
        offsets = _offsets_of(lengths)
        # Value j of row i comes from starts[i] + j; one flat index gathers them all.
        places = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Csr(offsets, self.values[places])

    def cut(self, limit: int) -> Csr:
        """Return every row's first `limit` values."""
        lengths = np.minimum(self.lengths(), limit)
        offsets = _offsets_of(lengths)
        places = np.repeat(self.offsets[:-1] - offsets[:-1], lengths) + np.arange(offsets[-1])
        return Csr(offsets, self.values[places])

    def sorted_rows(self) -> Csr:
        """Return the same rows, the values of each rising."""
        # The last key sorts first: rows stay where they are.
        return Csr(self.offsets, self.values[np.lexsort((self.values, self.owners()))])

    def save(self, folder: Path, name: str) -> None:
        """Write `name.offsets.npy` and `name.values.npy` into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{name}.offsets.npy", self.offsets)
        np.save(folder / f"{name}.values.npy", self.values)


def open_csr(folder: Path, name: str) -> Csr:
    """Memory-map what `Csr.save` or `write_column` wrote.

    Raises:
        ArtifactError: a file is missing or is not a whole array.
    """
    try:
        offsets = np.load(folder / f"{name}.offsets.npy", mmap_mode="r")
        values = np.load(folder / f"{name}.values.npy", mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(
            f"{folder}/{name}.*.npy cannot be read ({error}); run `plant-dist prepare` again"
        ) from None
    return Csr(offsets, values)


def csr_from_lists(rows: Sequence[Sequence[int]]) -> Csr:
    """Pack rows of Python integers, such as the token ids of texts to be predicted."""
    # Typed at once: `np.array` of a ragged list would make an array of objects.
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    offsets = _offsets_of(lengths)
    return Csr(offsets, np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1])))


def csr_from_column(column: Any) -> Csr:
    """Copy an Arrow `ChunkedArray` of list<int32> into memory."""
    chunks = column.chunks
    lengths = [_chunk_lengths(chunk) for chunk in chunks]
    # `flatten` respects a slice of the column, `.values` would not.
    values = [chunk.flatten().to_numpy() for chunk in chunks]
    return Csr(
        _offsets_of(np.concatenate(lengths) if lengths else np.zeros(0, np.int64)),
        np.concatenate(values).astype(np.int32, copy=False) if values else np.zeros(0, np.int32),
    )


def write_column(column: Any, folder: Path, name: str) -> None:
    """Stream an Arrow `ChunkedArray` of list<int32> to disk, one chunk in memory at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    lengths: Iterable[Int64] = [_chunk_lengths(chunk) for chunk in column.chunks]
    offsets = _offsets_of(np.concatenate([np.zeros(0, np.int64), *lengths]))
    np.save(folder / f"{name}.offsets.npy", offsets)
    path = folder / f"{name}.values.npy"
    if not offsets[-1]:  # an empty file cannot be memory-mapped for writing
        np.save(path, np.zeros(0, np.int32))
        return
    # An .npy file that is written in place; pages go to disk as the system sees fit.
    values = np.lib.format.open_memmap(path, "w+", np.int32, (int(offsets[-1]),))
    filled = 0
    for chunk in column.chunks:
        flat = chunk.flatten().to_numpy()
        values[filled : filled + len(flat)] = flat
        filled += len(flat)
    values.flush()


def _chunk_lengths(chunk: Any) -> Int64:
    lengths: Int64 = chunk.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    return lengths


def _offsets_of(lengths: Int64) -> Int64:
    # int64 throughout: tokens of a large corpus pass 2³¹ though no document does.
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
