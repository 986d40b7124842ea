"""What corpora of one document a line have in common: their files, and labels named by the user.

Must not know how a line is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from plant_dist.config.schema import DataConfig
from plant_dist.data.files.label_files import named_labels
from plant_dist.data.files.lines import read_lines
from plant_dist.data.files.sources import config_digest
from plant_dist.data.records import Label


class Line(NamedTuple):
    """A line of a split's file.

    Attributes:
        text: without its end. where: `file:line`.
        id: split or file name, and line, for documents that have no id of their own.
    """

    text: str
    where: str
    id: str


class LineCorpus:
    """The files of a corpus; a reader adds `documents`.

    Args:
        reader: its name.
        data: names encoding and label file.
        files: (split, file); None where the file says no split.
    """

    def __init__(self, reader: str, data: DataConfig, files: list[tuple[str | None, Path]]) -> None:
        self._reader, self._data, self._files = reader, data, files

    def describe(self) -> str:
        """Return the files in one line."""
        return f"{self._reader}, {', '.join(str(path) for _, path in self._files)}"

    def fingerprint(self) -> str:
        """Return a hash of the files."""
        return config_digest(self._data)

    def labels(self) -> Iterator[Label]:
        """Stream the labels of `data.labels_path`; none where it is unset."""
        return named_labels(self._data)

    def _lines(self, split: str | None, path: Path) -> Iterator[Line]:
        for number, text in enumerate(read_lines(path, self._data.encoding), 1):
            yield Line(text, f"{path}:{number}", f"{split or path.stem}-{number}")
