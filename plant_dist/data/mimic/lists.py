"""Lists of admissions by split, as the literature hands them on.

Three files in a folder, one for each split, told apart by the words of their names: CAML's
`train_full_hadm_ids.csv`, KEPT's `mimic3-50l_train.json`, MDACE's `MDace-ev-train.csv`, or the
`train.csv` that `prepare` writes. Or one Feather or Parquet table with columns `_id` and `split`,
as the replication study has it. Must not know tables or label sets.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq

from plant_dist.data.mimic.tables import as_number
from plant_dist.data.records import SPLITS
from plant_dist.data.splits import named_split
from plant_dist.errors import DataError

_LIST_SUFFIXES = (".csv", ".txt", ".json")
_TABLE_SUFFIXES = (".feather", ".parquet")
_WORD = re.compile(r"[a-z]+|[0-9]+")


@dataclass(frozen=True)
class AdmissionLists:
    """Which admissions stand in which split.

    Attributes:
        splits: split by admission id.
        labels: label ids by admission id, where the lists give them.
        files: what was read.
    """

    splits: dict[int, str]
    labels: dict[int, tuple[str, ...]]
    files: tuple[Path, ...]


def read_lists(path: Path, prefer: str | None = None) -> AdmissionLists:
    """Read lists of admissions.

    Args:
        path: a table, or a folder of three files or one table.
        prefer: the word in a name that decides where a folder has several triples of files, such
            as `full` or `50`.

    Raises:
        DataError: nothing is found, too much is, a file is broken, or an admission stands twice.
    """
    files = list_files(path, prefer)
    splits: dict[int, str] = {}
    labels: dict[int, tuple[str, ...]] = {}
    for split, file in files:
        for where, admission, word, codes in _entries(file, split):
            if splits.setdefault(admission, word) != word:
                raise DataError(
                    f"{where}: admission {admission} is for {word}, but before it was for "
                    f"{splits[admission]}; an admission has one split"
                )
            if codes is not None:
                labels[admission] = codes
    return AdmissionLists(splits, labels, tuple(file for _, file in files))


def read_code_list(path: Path) -> frozenset[str]:
    """Read codes with their dots, one a line, such as CAML's `TOP_50_CODES.csv`.

    Raises:
        DataError: the file cannot be read, or names no code.
    """
    codes = frozenset(line.strip('"') for line in _lines(path) if line)
    if not codes:
        raise DataError(f"{path} is empty; it should hold a code a line")
    return codes


def list_files(path: Path, prefer: str | None = None) -> list[tuple[str | None, Path]]:
    """Return (split or None for a table of all, file) of what `read_lists` would read.

    Raises:
        DataError: nothing is found, or too much is.
    """
    if path.suffix.lower() in _TABLE_SUFFIXES and path.is_file():
        return [(None, path)]
    if not path.is_dir():
        raise DataError(
            f"{path} is neither a folder of lists nor a Feather or Parquet table; put the lists "
            "there (docs/corpora/mimic.md), or correct data.reader_options.splits and .subset: "
            "null makes a split"
        )
    families = _families(path)
    whole = {name: family for name, family in families.items() if set(family) == set(SPLITS)}
    chosen = [name for name in whole if prefer in _WORD.findall(name)] or list(whole)
    if len(chosen) == 1:
        return [(split, whole[chosen[0]][split]) for split in SPLITS]
    tables = [one for one in sorted(path.iterdir()) if one.suffix.lower() in _TABLE_SUFFIXES]
    if not chosen and len(tables) == 1:
        return [(None, tables[0])]
    found = ", ".join(sorted(one.name for one in path.iterdir())) or "nothing"
    raise DataError(
        f"{path} must hold three lists (train, validation or dev, test) or one Feather or Parquet "
        f"table, found {found[:200]}; keep the files of one split in a folder of their own"
    )


def _families(folder: Path) -> dict[str, dict[str, Path]]:
    """Return files by the rest of their name, and in it by split."""
    families: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in _LIST_SUFFIXES or not path.is_file():
            continue
        words = _WORD.findall(path.stem.lower())
        named = [word for word in words if named_split(word) in SPLITS]
        if len(named) == 1:
            rest = " ".join([*(one for one in words if one != named[0]), path.suffix.lower()])
            families.setdefault(rest, {})[str(named_split(named[0]))] = path
    return families


Entry = tuple[str, int, str, tuple[str, ...] | None]


def _entries(file: Path, split: str | None) -> Iterator[Entry]:
    """Yield place, admission, split, and labels where the file gives them."""
    if split is None:
        yield from _table_entries(file)
    elif file.suffix.lower() == ".json":
        for number, entry in enumerate(_json_list(file), 1):
            where = f"{file} entry {number}"
            yield where, _admission(entry, where), split, _codes(entry, where)
    else:
        for number, line in enumerate(_lines(file), 1):
            # CAML's lists have no header; others may.
            if line and not (number == 1 and line.lower().strip('"') in ("hadm_id", "_id", "id")):
                where = f"{file}:{number}"
                yield where, as_number(line.strip('"'), "the admission", where), split, None


def _lines(file: Path) -> list[str]:
    try:
        return [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from None


def _json_list(file: Path) -> list[Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{file} is no JSON: {error}") from None
    if not isinstance(content, list):
        raise DataError(f"{file} holds a JSON {type(content).__name__}, expected a list")
    return content


def _admission(entry: Any, where: str) -> int:
    if not isinstance(entry, dict) or "hadm_id" not in entry:
        raise DataError(f"{where}: expected an object with hadm_id, found {str(entry)[:60]}")
    return as_number(str(entry["hadm_id"]), "hadm_id", where)


def _codes(entry: dict[str, Any], where: str) -> tuple[str, ...] | None:
    codes = entry.get("LABELS")
    if codes is None:
        return None
    several = codes.split(";") if isinstance(codes, str) else codes
    if not isinstance(several, list) or not all(isinstance(one, str) for one in several):
        raise DataError(f"{where}: LABELS is {str(codes)[:60]!r}, expected codes with `;` between")
    return tuple(one.strip() for one in several if one.strip())


def _table_entries(file: Path) -> Iterator[Entry]:
    try:
        # Memory-mapped or not, such a table is a few megabytes.
        if file.suffix.lower() == ".feather":
            table: Any = feather.read_table(file)
        else:
            table = pq.read_table(file)
        columns: Iterable[Any] = (table.column(name).to_pylist() for name in ("_id", "split"))
        rows = list(zip(*columns, strict=True))
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file} is no table with columns _id and split: {reason}") from None
    for number, (admission, word) in enumerate(rows, 1):
        where = f"{file} row {number}"
        split = named_split(word) if isinstance(word, str) else None
        if split not in SPLITS:
            raise DataError(f"{where}: split is {word!r}, expected train, val or test")
        yield where, as_number(str(admission), "_id", where), split, None
