"""Label rows on disk: pieces by range of labels, written by their owners, read by any number.

`rows.json` says how many labels, which fields and which optimizer; `rows-START-STOP.safetensors`
hold `FIELD.rows` and `FIELD.PART` of the optimizer's state for the labels START … STOP-1. Pieces
are small against a table, so that writing needs little memory, and every rank reads what it owns
from the pieces that cover it. Knows nothing of engines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from plant_dist.artifacts import write_json
from plant_dist.errors import ArtifactError

ABOUT = "rows.json"
# A piece is copied while it is written, so this bounds the memory that saving takes.
PIECE_LABELS = 262_144
FORMAT = 1


@dataclass(frozen=True)
class SavedTable:
    """What of a table a rank saves, or wants filled.

    Attributes:
        count: labels of the whole table.
        widths: numbers per label of each field.
        optimizer: name of the rows' optimizer.
        tensors: field → part (`rows`, and the optimizer's) → (len(own), width).
        own: the labels that the tensors hold.
    """

    count: int
    widths: Mapping[str, int]
    optimizer: str
    tensors: Mapping[str, Mapping[str, Tensor]]
    own: range


@dataclass(frozen=True)
class RowsSnapshot:
    """A rank's rows after some steps of their optimizer; a `Snapshot` of `runtime.apart`."""

    table: SavedTable
    steps: int

    @property
    def nbytes(self) -> int:
        """The size of the rows, and of their optimizer's state."""
        return sum(one.nbytes for parts in self.table.tensors.values() for one in parts.values())

    def copied(self) -> RowsSnapshot:
        """Return the same in host memory, where no step changes it."""
        copies = {
            name: {part: one.to("cpu", copy=True) for part, one in parts.items()}
            for name, parts in self.table.tensors.items()
        }
        return replace(self, table=replace(self.table, tensors=copies))

    def write(self, folder: Path) -> list[Path]:
        """Write the rows; see `save_rows`."""
        return save_rows(folder, self.table, self.steps)


def save_rows(folder: Path, table: SavedTable, steps: int) -> list[Path]:
    """Write this rank's rows; the rank that owns label 0 writes `rows.json` as well.

    Returns: the files.

    Raises:
        ArtifactError: the disk is full or cannot be written.
    """
    paths = []
    try:
        for start in range(table.own.start, table.own.stop, PIECE_LABELS):
            stop = min(start + PIECE_LABELS, table.own.stop)
            piece = slice(start - table.own.start, stop - table.own.start)
            paths.append(folder / piece_name(start, stop))
            save_file(
                {
                    f"{name}.{part}": tensor[piece].contiguous()
                    for name, parts in table.tensors.items()
                    for part, tensor in parts.items()
                },
                paths[-1],
            )
        # One rank speaks for the table, and it needs no rank number to know that it is the one.
        if table.own.start == 0:
            about = {"format": FORMAT, "count": table.count, "widths": dict(table.widths),
                     "optimizer": table.optimizer, "steps": steps}  # fmt: skip
            paths.append(folder / ABOUT)
            write_json(paths[-1], about)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"{folder}: label rows cannot be written ({error}); free some space there"
        ) from None
    return paths


def load_rows(folder: Path, table: SavedTable, resume: bool) -> int:
    """Fill this rank's tensors in place.

    Args:
        resume: the optimizer's state is among them, so it must be the same optimizer.

    Returns: steps of the optimizer; 0 unless `resume`.

    Raises:
        ArtifactError: a piece is missing or damaged, or the table is another.
    """
    about = read_about(folder)
    _check_same(folder, about, table, resume)
    reached = table.own.start
    for start, stop, path in pieces(folder):
        # Other ranks than these may have saved, so a piece may hold more or less than is mine.
        low, high = max(start, reached), min(stop, table.own.stop)
        if start > reached or low >= high:
            continue
        _read_piece(path, slice(low - start, high - start), table, low)
        reached = high
    if reached < table.own.stop:
        raise ArtifactError(
            f"{folder} lacks the rows of label {reached}; copy the whole folder, every "
            "rows-*.safetensors of it"
        )
    return int(about["steps"]) if resume else 0


def pieces(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """Yield (first label, one past the last, file), by rising label."""
    # Numbers are filled with zeros, so names sort as labels do.
    for path in sorted(folder.glob("rows-*-*.safetensors")):
        start, stop = path.stem.removeprefix("rows-").split("-")
        yield int(start), int(stop), path


def piece_name(start: int, stop: int) -> str:
    """Return the file of the labels start … stop-1."""
    return f"rows-{start:012d}-{stop:012d}.safetensors"


def read_about(folder: Path) -> dict[str, Any]:
    """Return what `rows.json` says.

    Raises:
        ArtifactError: there is none, or it is of another format.
    """
    try:
        about: dict[str, Any] = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{folder} holds no label rows ({ABOUT}: {error}); copy the whole folder"
        ) from None
    if about.get("format") != FORMAT:
        raise ArtifactError(f"{folder / ABOUT} has format {about.get('format')}; this is {FORMAT}")
    return about


def _check_same(folder: Path, about: Mapping[str, Any], table: SavedTable, resume: bool) -> None:
    for what, found, wanted in (
        ("labels", about["count"], table.count),
        ("fields", about["widths"], dict(table.widths)),
    ):
        if found != wanted:
            raise ArtifactError(
                f"{folder} has label rows of {what} {found}, the model of {wanted}; use the "
                "settings and the label space they were saved with"
            )
    if resume and about["optimizer"] != table.optimizer:
        raise ArtifactError(
            f"{folder} has rows moved by {about['optimizer']}, this run moves them by "
            f"{table.optimizer}; set labels.optimizer={about['optimizer']}"
        )


def _read_piece(path: Path, taken: slice, table: SavedTable, first: int) -> None:
    """Copy the rows `taken` of a piece to where the label `first` lies."""
    place = slice(first - table.own.start, first - table.own.start + taken.stop - taken.start)
    try:
        with safe_open(path, framework="pt") as piece:
            for name, parts in table.tensors.items():
                for part, tensor in parts.items():
                    # A slice of a mapped file: no more is read than is taken.
                    tensor[place] = piece.get_slice(f"{name}.{part}")[taken].to(tensor.device)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({str(error).splitlines()[0]}); copy it again, or train again"
        ) from None
