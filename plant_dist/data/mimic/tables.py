"""The tables of a MIMIC release: where they lie, which release they are, and their columns.

Both releases are found by the names of their files, in any folder below the one given, gzipped or
not, in capitals or not; so one path is all a user sets. Must not know what the columns mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from plant_dist.artifacts import digest_of
from plant_dist.data.files.tables import read_rows
from plant_dist.errors import DataError

# physionet.org/files/mimiciv/2.2/hosp/x.csv.gz is three folders below `files`.
DEPTH = 3
VERBATIM = "text"
ADVICE = "set data.path to the folder that holds the tables as PhysioNet gives them"


class Cells(NamedTuple):
    """Some columns of a row, in the order asked for.

    where: `file:line`. values: of each column, NULL being the empty string; without white space
    at the ends, but for the column `text`.
    """

    where: str
    values: tuple[str, ...]


class Tables:
    """The tables below a folder.

    Raises:
        DataError: there is no such folder, or it holds the notes of neither release, or of both.
    """

    def __init__(self, folder: Path, encoding: str) -> None:
        if not folder.is_dir():
            raise DataError(f"folder {folder} does not exist; {ADVICE}")
        self._folder, self._encoding = folder, encoding
        self._found = _tables_below(folder)
        releases = [name for name in ("noteevents", "discharge") if name in self._found]
        if len(releases) != 1:
            found = " and ".join(releases) or "neither"
            raise DataError(
                f"{folder} must hold NOTEEVENTS.csv[.gz] (MIMIC-III) or discharge.csv[.gz] "
                f"(MIMIC-IV), found {found}; {ADVICE}"
            )
        self.release = 3 if releases == ["noteevents"] else 4

    def __contains__(self, table: str) -> bool:
        return table in self._found

    def path(self, table: str) -> Path:
        """Return where a table lies, by its name in small letters without suffix.

        Raises:
            DataError: it is missing, or lies in several folders.
        """
        places = self._found.get(table, [])
        if not places:
            raise DataError(f"{self._folder} holds no table {table}.csv[.gz]; {ADVICE}")
        if len(places) > 1:
            shown = ", ".join(str(place) for place in places)
            raise DataError(f"table {table} lies in several places: {shown}; keep one")
        return places[0]

    def rows(self, table: str, columns: Sequence[str]) -> Iterator[Cells]:
        """Stream columns of a table; memory holds one row.

        Args:
            table: its name in small letters, without suffix.
            columns: names in small letters; a `?` at the end makes one optional, its cells empty.

        Raises:
            DataError: the table or a column is missing, or a row breaks the CSV format.
        """
        names: list[str | None] = []
        # Evidence counts characters of a note from its very first.
        verbatim = [column == VERBATIM for column in columns]
        for where, values in read_rows(self.path(table), self._encoding):
            # Bound to the header once: searching it for every row would cost more than parsing.
            names = names or _names_in(values, columns, where)
            cells = ["" if name is None else values[name] for name in names]
            yield Cells(where, tuple([
                cell if whole else cell.strip()
                for cell, whole in zip(cells, verbatim, strict=True)
            ]))  # fmt: skip

    def fingerprint(self, tables: Sequence[str]) -> str:
        """Return a hash over names, sizes and times of tables, which are too large to be read."""
        paths = [self.path(table) for table in tables if table in self]
        return digest_of([(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in paths])


_LARGEST = 2**63 - 1  # identifiers are kept in arrays of int64


def as_number(cell: str, column: str, where: str) -> int:
    """Read an identifier.

    Raises:
        DataError: it is no whole number, or none of 64 bits.
    """
    try:
        number = int(cell)
    except ValueError:
        number = _LARGEST + 1
    if abs(number) > _LARGEST:
        raise DataError(
            f"{where}: {column} is {cell[:80]!r}, expected a whole number; take the table as "
            "PhysioNet gives it, not as another program saved it"
        )
    return number


def _tables_below(folder: Path) -> dict[str, list[Path]]:
    levels = (folder.glob("/".join(["*"] * depth)) for depth in range(1, DEPTH + 2))
    found: dict[str, list[Path]] = {}
    for path in sorted(chain.from_iterable(levels)):
        plain = path.name.lower().removesuffix(".gz")
        if not plain.endswith(".csv") or not path.is_file():
            continue
        places = found.setdefault(plain.removesuffix(".csv"), [])
        # Unpacked beside its archive a table is one and the same; the unpacked reads faster.
        twin = [one for one in places if one.parent == path.parent]
        if not twin:
            places.append(path)
        elif twin[0].suffix.lower() == ".gz":
            places[places.index(twin[0])] = path
    return found


def _names_in(header: Iterable[str], columns: Sequence[str], where: str) -> list[str | None]:
    """Return the table's own spelling of each column, None for an optional one that it lacks."""
    spelling = {name.strip().lower(): name for name in header}
    names: list[str | None] = []
    for column in columns:
        name = spelling.get(column.removesuffix("?"))
        if name is None and not column.endswith("?"):
            raise DataError(
                f"{where}: no column {column!r}; columns found: {', '.join(spelling)}; {ADVICE}"
            )
        names.append(name)
    return names
