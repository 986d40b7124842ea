"""Labels that are declared in a file of their own: by name, or by their place in the file.

A label known by its place has the id "0", "1", …, so that two labels of one name stay two. Must
not know which documents carry them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path

from plant_dist.config.schema import DataConfig
from plant_dist.data.files.columns import label_of
from plant_dist.data.files.lines import read_lines
from plant_dist.data.files.tables import is_table, read_rows
from plant_dist.data.records import Label
from plant_dist.errors import DataError


def named_labels(data: DataConfig) -> Iterator[Label]:
    """Stream the labels of `data.labels_path`, a table, or a text file of one label a line.

    Raises:
        DataError: as `read_rows` and `label_of`.
    """
    if data.labels_path is None:
        return
    path = Path(data.labels_path)
    if is_table(path):
        yield from (label_of(row, data) for row in read_rows(path, data.encoding))
    else:
        for number, line in enumerate(read_lines(path, data.encoding), 1):
            yield Label(line, line, where=f"{path}:{number}")


class NumberedLabels:
    """Labels that documents mean by their number.

    Args:
        read: gives a fresh stream of the label names, one a number.
        source: what they are read from, for errors.
    """

    def __init__(self, read: Callable[[], Iterator[str]], source: Path) -> None:
        self._read, self.source = read, source

    def __iter__(self) -> Iterator[Label]:
        for number, text in enumerate(self._read()):
            yield Label(str(number), text)

    @cached_property
    def count(self) -> int:
        """L: from the file, never from the largest number that occurs."""
        return sum(1 for _ in self._read())

    def ids(self, numbers: list[int], where: str) -> tuple[str, ...]:
        """Return the ids of numbers.

        Raises:
            DataError: a number has no label.
        """
        for number in numbers:
            if not 0 <= number < self.count:
                raise DataError(
                    f"{where}: label {number} is not among the {self.count} of {self.source} "
                    "(0-based); take both from one source"
                )
        return tuple(map(str, numbers))


def line_labels(path: Path, data: DataConfig) -> NumberedLabels:
    """Return the labels of a file: line n, or row n of a table, names label n."""
    if not is_table(path):
        return NumberedLabels(lambda: read_lines(path, data.encoding), path)

    def texts() -> Iterator[str]:
        for row in read_rows(path, data.encoding):
            text = row.get(data.label_text_column, "data.label_text_column")
            yield "" if text is None else str(text)

    return NumberedLabels(texts, path)


def unnamed_labels(count: int, source: Path) -> NumberedLabels:
    """Return labels of which only the number is known, from the width of a matrix."""
    return NumberedLabels(lambda: iter([""] * count), source)
