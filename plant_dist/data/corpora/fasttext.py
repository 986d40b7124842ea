"""The format of fastText: `__label__a __label__b words of the text`, one document a line.

As fastText reads it, a word with the prefix is a label wherever it stands; the rest of the line is
the text, untouched. `data.path` is a file or a folder with `train.txt`, `valid.txt`, `test.txt`;
the other paths name a split's file. Options (`data.reader_options`): `prefix`. `data.labels_path`
may name the labels. Must not know what the labels mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.line_corpus import LineCorpus
from plant_dist.data.files.lines import split_files
from plant_dist.data.records import Document
from plant_dist.errors import ConfigError, DataError

# What fastText's dictionary takes for the end of a word.
_BLANKS = " \t\v\f\0"


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    prefix: str = "__label__"


def open(data: DataConfig) -> FastTextCorpus:
    """Open the corpus of a folder or of named files.

    Raises:
        ConfigError: no path is set, or an option is unknown or empty.
        DataError: the folder holds no such file.
    """
    options = parse_options(Options, data.reader_options, "fasttext")
    if not options.prefix:
        raise ConfigError("data.reader_options.prefix is empty; it must mark a label")
    files = split_files(data, ("{}.txt", "{}.ft", "{}.ft.txt"), "fastText's train.txt")
    return FastTextCorpus(data, files, options.prefix)


class FastTextCorpus(LineCorpus):
    """Lines of labels and words."""

    def __init__(self, data: DataConfig, files: list[tuple[str | None, Path]], prefix: str) -> None:
        super().__init__("fasttext", data, files)
        self._prefix = prefix
        blank = f"[{_BLANKS}]"
        # A label with the blanks behind it, so that cutting it out leaves the text as it was.
        self._label = re.compile(
            f"(?:^|(?<={blank})){re.escape(prefix)}([^{_BLANKS}]*)(?:{blank}+|$)"
        )

    def documents(self) -> Iterator[Document]:
        """Stream the documents; ids are file name and line.

        Raises:
            DataError: a label has no name.
        """
        for split, path in self._files:
            for line in self._lines(split, path):
                labels = tuple(self._label.findall(line.text))
                if not all(labels):
                    raise DataError(f"{line.where}: {self._prefix} without a name; name the label")
                text = self._label.sub("", line.text)
                yield Document(line.id, text, labels, split, where=line.where)
