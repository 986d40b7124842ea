"""What a sample of a format is, and the kinds of damage that files come to.

Shared by the samples beside this file and by `test_corrupt.py`, which says what must come of it.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Edit = Callable[[bytes], bytes]


@dataclass
class Sample:
    """A valid corpus.

    Attributes:
        settings: of the `data` section; "{}" stands for the folder.
        broken: kind of damage → the file it comes to, and what becomes of it (None: it is gone);
            each must be refused.
        units: the documents that a folder holds, counted without the reader; None where damage may
            change what a document is.
    """

    write: Callable[[Path], None]
    settings: dict[str, Any]
    broken: dict[str, tuple[str, Edit | None]]
    units: Callable[[Path], int] | None = None


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


def files(**named: str | bytes) -> Callable[[Path], None]:
    return lambda folder: put(folder, {n.replace("__", "."): text for n, text in named.items()})


def lines(*names: str) -> Callable[[Path], int]:
    """Lines of text files: only a line feed ends one, and the last need not be ended."""

    def count(folder: Path) -> int:
        found = 0
        for name in names:
            raw = (folder / name).read_bytes()
            found += raw.count(b"\n") + (bool(raw) and not raw.endswith(b"\n"))
        return found

    return count


def swap(old: bytes, new: bytes) -> Edit:
    def edit(raw: bytes) -> bytes:
        assert old in raw
        return raw.replace(old, new, 1)

    return edit


def latin(raw: bytes) -> bytes:
    return raw.replace("é".encode(), b"\xe9").replace("ñ".encode(), b"\xf1")


def cut(share: float = 0.5) -> Edit:
    return lambda raw: raw[: int(share * len(raw))]


def without_last_line(raw: bytes) -> bytes:
    return b"".join(raw.splitlines(keepends=True)[:-1])


BINARY: Edit = lambda raw: b"\x7fELF\x02\x01\x00\x00\xff\xfe\x9c" * 9  # noqa: E731
GONE = None


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_rows(folder: Path, name: str, mark: str) -> int:
    with (folder / name).open(encoding="utf-8", newline="") as stream:
        return sum(bool(row) for row in csv.reader(stream, delimiter=mark)) - 1
