"""The text format of LibMultiLabel: `[id<TAB>]label label<TAB>text`, one document a line.

`data.path` is a file or a folder with `train.txt`, `valid.txt`, `test.txt`; the other paths name a
split's file. `data.labels_path` may name the labels. No options. Must not know anything else of
LibMultiLabel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.line_corpus import LineCorpus
from plant_dist.data.files.lines import split_files, words
from plant_dist.data.records import Document
from plant_dist.errors import DataError


@dataclass(frozen=True)
class Options:
    """This reader has no options."""


def open(data: DataConfig) -> LibMultiLabelCorpus:
    """Open the corpus of a folder or of named files.

    Raises:
        ConfigError: no path is set, or an option is given.
        DataError: the folder holds no such file.
    """
    parse_options(Options, data.reader_options, "libmultilabel")
    files = split_files(data, ("{}.txt", "{}.tsv"), "LibMultiLabel's train.txt")
    return LibMultiLabelCorpus("libmultilabel", data, files)


class LibMultiLabelCorpus(LineCorpus):
    """Lines of two or three fields."""

    def documents(self) -> Iterator[Document]:
        """Stream the documents; without an id column, ids are file name and line.

        Raises:
            DataError: a line has other fields than the first, or not two or three.
        """
        for split, path in self._files:
            width = 0
            for line in self._lines(split, path):
                fields = line.text.split("\t")
                # The first line decides; a tab inside a text would otherwise pass for a field.
                width = width or len(fields)
                if len(fields) != width or width not in (2, 3):
                    raise DataError(
                        f"{line.where}: found {len(fields)} fields, expected "
                        f"{width if width in (2, 3) else '2 or 3'}: "
                        "[id<TAB>]label label<TAB>text; write tabs inside texts as blanks"
                    )
                name = fields[0] if width == 3 else line.id
                labels = tuple(words(fields[-2]))
                yield Document(name, fields[-1], labels, split, where=line.where)
