"""Hashes of what a corpus is read from, so that a changed source is noticed before it misleads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plant_dist.artifacts import digest_of, file_digest
from plant_dist.errors import DataError


def sources_digest(sources: Sequence[str]) -> str:
    """Return one sha256 over files (their bytes), folders and names.

    A folder counts by the names, sizes and times of its files, which costs nothing on corpora of
    many gigabytes; a hub name counts as it stands.

    Raises:
        DataError: a file cannot be read.
    """
    return digest_of([_digest(source) for source in sources])


def _digest(source: str) -> str:
    path = Path(source)
    try:
        if path.is_file():
            return file_digest(path)
        if path.is_dir():
            # Sorted, because a file system lists a folder in an order of its own.
            files = sorted(one for one in path.rglob("*") if one.is_file())
            facts = [(str(f.relative_to(path)), f.stat().st_size, f.stat().st_mtime_ns)
                     for f in files]  # fmt: skip
            return digest_of(facts)
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from None
    # A hub name: what it stands for can change without our seeing it.
    return source
