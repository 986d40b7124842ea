"""Lines out of text files, and files that belong together line by line.

Only a line feed ends a line, as in every tool that counts lines: Python's other line ends (U+2028,
form feed) occur inside texts and would shift all labels after them. Must not know what a line
means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path

from plant_dist.config.schema import DataConfig
from plant_dist.data.files.sources import named_sources
from plant_dist.data.files.tables import open_text
from plant_dist.data.records import SPLITS
from plant_dist.errors import DataError

# What a split is called in file names, the commonest first.
STEMS = {
    "train": ("train", "trn"),
    "validation": ("valid", "val", "dev", "validation"),
    "test": ("test", "tst"),
}
# Between two words of a line; other white space can be part of a label.
BLANKS = " \t"


def read_lines(path: Path, encoding: str = "utf-8") -> Iterator[str]:
    """Stream the lines of a file (`.gz` allowed), without their ends.

    Raises:
        DataError: the file is missing, is no whole gzip file, or does not decode.
    """
    if not path.is_file():
        raise DataError(f"file {path} does not exist; check data.path and its like")
    with open_text(path, encoding, newline="\n") as stream:
        for line in stream:
            yield line.removesuffix("\n").removesuffix("\r")


def read_aligned(
    paths: Sequence[Path], encoding: str = "utf-8"
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Stream (`file:line` of the first file, that line of every file).

    Raises:
        DataError: a file ends before another, so that lines cannot belong together; and as
            `read_lines`.
    """
    with ExitStack() as stack:
        # Closed here and not when collected, should the reader stop half-way.
        streams = [read_lines(path, encoding) for path in paths]
        for stream in streams:
            stack.callback(stream.close)  # type: ignore[attr-defined]
        for number, lines in enumerate(zip_longest(*streams), 1):
            if None in lines:
                short = paths[lines.index(None)]
                long = next(
                    path for path, line in zip(paths, lines, strict=True) if line is not None
                )
                raise DataError(
                    f"{short} ends after {number - 1} lines, {long} goes on; line n of both must "
                    "be one document: fetch them again from one source"
                )
            yield f"{paths[0]}:{number}", lines


def words(line: str) -> list[str]:
    """Return what stands between the blanks and tabs of a line.

    `str.split` would also cut at no-break and ideographic spaces, which occur in label names.
    """
    return [word for word in line.replace("\t", " ").split(" ") if word]


def find_file(folder: Path, *names: str) -> Path | None:
    """Return the first of the names that is a file of the folder, as it is or with `.gz`."""
    candidates = (folder / f"{name}{packed}" for name in names for packed in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def find_splits(folder: Path, *patterns: str) -> dict[str, Path]:
    """Return each split's file: the first pattern, such as `{}_texts.txt`, that one matches."""
    found = {}
    for split in SPLITS:
        # Pattern by pattern, so that all of a preferred kind of file goes before the next kind.
        names = [pattern.format(stem) for pattern in patterns for stem in STEMS[split]]
        if path := find_file(folder, *names):
            found[split] = path
    return found


def split_files(
    data: DataConfig, patterns: Sequence[str], holds: str
) -> list[tuple[str | None, Path]]:
    """Return (split, file) of every file that a configuration means; None says no split.

    Args:
        patterns: names of the splits' files where `data.path` is a folder.
        holds: what should be in it, for the error.

    Raises:
        ConfigError: no path is set.
        DataError: a path is neither file nor folder, or the folder holds no such file.
    """
    files: list[tuple[str | None, Path]] = []
    for source, split in named_sources(data):
        path = Path(source)
        if split or not path.is_dir():
            files.append((split, path))
            continue
        found = find_splits(path, *patterns)
        if not found:
            wanted = ", ".join(pattern.format("train") for pattern in patterns)
            raise DataError(f"{path} holds no {wanted} or the like; name the folder of {holds}")
        files += found.items()
    return files


def existing_folder(path: str | None, holds: str) -> Path:
    """Return `data.path` as a folder.

    Args:
        holds: what should be in it, for the error.

    Raises:
        DataError: it is unset or no folder.
    """
    if path is None:
        raise DataError(f"data.path is not set; name the folder that holds {holds}")
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"data.path {path} is not a folder; name the one that holds {holds}")
    return folder
