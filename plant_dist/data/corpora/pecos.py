"""The two text layouts of PECOS.

A folder (`data.path`) with `X.{trn,tst}.txt`, one text a line, and `Y.{trn,tst}.npz`; or files in
which a line is `0,3<TAB>text` or `0::0.1,2::0.8<TAB>text` (`data.path`, `data.train_path`, …).
Numbers are lines of the label file: `data.labels_path`, or the folder's `output-items.txt`. A
relevance of 0 is no label; others count alike. No options. Must not know features.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.label_files import NumberedLabels, line_labels, unnamed_labels
from plant_dist.data.files.lines import find_file, find_splits, read_lines, split_files
from plant_dist.data.files.sources import config_digest
from plant_dist.data.files.sparse import load_label_rows, matrix_shape, refuse_features
from plant_dist.data.records import Document, Label
from plant_dist.errors import DataError

_LABEL_FILES = ("output-items.txt", "Y.txt")


@dataclass(frozen=True)
class Options:
    """This reader has no options."""


def open(data: DataConfig) -> PecosCorpus:
    """Open the corpus of a folder or of combined files.

    Raises:
        ConfigError: no path is set, or an option is given.
        DataError: a file is missing, or sizes disagree.
    """
    parse_options(Options, data.reader_options, "pecos")
    folder = Path(data.path) if data.path and Path(data.path).is_dir() else None
    texts = find_splits(folder, "X.{}.txt") if folder else {}
    if not folder or not texts:
        if folder:
            refuse_features(folder, "X.{trn,tst}.txt")
        files = split_files(data, ("{}.txt",), "PECOS's X.trn.txt and Y.trn.npz")
        return PecosCorpus(data, files, {}, _labels(folder, data, []))
    matrices = find_splits(folder, "Y.{}.npz")
    for split, path in texts.items():
        if split not in matrices:
            raise DataError(f"{path} has no targets beside it; add Y.trn.npz or Y.tst.npz")
    used = [matrices[split] for split in texts]
    return PecosCorpus(data, list(texts.items()), matrices, _labels(folder, data, used))


def _labels(folder: Path | None, data: DataConfig, matrices: list[Path]) -> NumberedLabels:
    path = Path(data.labels_path) if data.labels_path else None
    if path is None and folder is not None:
        path = find_file(folder, *_LABEL_FILES)
    counts = {matrix: matrix_shape(matrix)[1] for matrix in matrices}
    if path is None and not counts:
        # Else the largest number that occurs would pass for L.
        raise DataError("data.labels_path is not set; name the file of label names, one a line")
    labels = line_labels(path, data) if path else unnamed_labels(counts[matrices[0]], matrices[0])
    for matrix, count in counts.items():
        if count != labels.count:
            raise DataError(
                f"{matrix} has {count} columns, {labels.source} {labels.count} labels; take both "
                "from one source"
            )
    return labels


class PecosCorpus:
    """Texts and label numbers."""

    def __init__(
        self,
        data: DataConfig,
        files: list[tuple[str | None, Path]] | list[tuple[str, Path]],
        matrices: dict[str, Path],
        labels: NumberedLabels,
    ) -> None:
        self._data, self._files = data, files
        self._matrices, self._labels = matrices, labels

    def describe(self) -> str:
        """Return the text files in one line."""
        return f"pecos, {', '.join(str(path) for _, path in self._files)}"

    def fingerprint(self) -> str:
        """Return a hash of the files."""
        return config_digest(self._data)

    def labels(self) -> Iterator[Label]:
        """Stream the labels in the order of their file."""
        return iter(self._labels)

    def documents(self) -> Iterator[Document]:
        """Stream the documents; ids are split or file name, and line, from 0."""
        for split, path in self._files:
            rows = self._combined(path) if not self._matrices else self._aligned(str(split), path)
            for number, (where, targets, text) in enumerate(rows):
                labels = self._labels.ids(targets, where)
                yield Document(f"{split or path.stem}-{number}", text, labels, split, where=where)

    def _aligned(self, split: str, path: Path) -> Iterator[tuple[str, list[int], str]]:
        rows, number = load_label_rows(self._matrices[split]), 0
        for number, text in enumerate(read_lines(path, self._data.encoding), 1):
            if number > rows.size:
                break
            yield f"{path}:{number}", rows.row(number - 1).tolist(), text
        if number != rows.size:
            raise DataError(
                f"{self._matrices[split]} has {rows.size} rows, {path} another number of lines "
                f"(line {number}); take both from one source"
            )

    def _combined(self, path: Path) -> Iterator[tuple[str, list[int], str]]:
        for number, line in enumerate(read_lines(path, self._data.encoding), 1):
            where = f"{path}:{number}"
            named, tab, text = line.partition("\t")
            if not tab:
                raise DataError(f"{where}: no tab; expected `0,3<TAB>text`")
            yield (
                where,
                [label for item in named.split(",") if item for label in _target(item, where)],
                text,
            )


def _target(item: str, where: str) -> list[int]:
    """Return `3` or `3::0.8` as a list of one number, of none where the relevance is 0."""
    number, relevance, value = item.strip(" ").partition("::")
    try:
        weight = float(value) if relevance else 1.0
    except ValueError:
        weight = math.nan
    if not (number.isascii() and number.isdigit()) or not math.isfinite(weight):
        raise DataError(f"{where}: found label {item[:80]!r}, expected a number or number::weight")
    return [int(number)] if weight else []
