"""What a corpus is read from: the paths of the configuration, and hashes that notice a change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plant_dist.artifacts import digest_of, file_digest
from plant_dist.config.schema import DataConfig
from plant_dist.data.records import SPLITS
from plant_dist.errors import ConfigError, DataError


def named_sources(data: DataConfig) -> list[tuple[str, str | None]]:
    """Return (path, split) of everything that documents are read from; `data.path` names no split.

    Raises:
        ConfigError: no path is set.
    """
    paths = (data.path, data.train_path, data.validation_path, data.test_path)
    # `data.path` says nothing of the split; the other three say it for the whole file.
    named = [(path, split) for path, split in zip(paths, (None, *SPLITS), strict=True) if path]
    if not named:
        raise ConfigError("data.path is not set; name a file, a folder or a dataset")
    return named


def config_digest(data: DataConfig) -> str:
    """Return one hash of every file, folder and name that a configuration reads."""
    labels = [data.labels_path] if data.labels_path else []
    return sources_digest([*(path for path, _ in named_sources(data)), *labels])


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
