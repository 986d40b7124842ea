"""Extreme-classification corpora as their repository ships them, with raw text.

`data.path` is a folder, either with `{trn,tst,lbl}.json[.gz]` (one object a line: `title`,
`content`, `target_ind`), or with one text a line: `{trn,tst}_X.txt`, label texts `Y.txt`, targets
`{trn,tst}_X_Y.txt` or `Y.{trn,tst}.npz`, there or in `raw/`. A label's id is its line in the label
file, from 0; without such a file L is the width of the matrices. A document's id is split and
line. Filter files are read with them, and what they name is ignored (docs/corpora/extreme.md).
Options (`data.reader_options`): `fields` and `label_fields` joined into the text, `ids` (`line` or
`uid`), `filters: false` leaves the filter files out. Folders of features alone are refused. Must
not know what a filter is for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.csr import Csr
from plant_dist.data.files.label_files import NumberedLabels, line_labels, unnamed_labels
from plant_dist.data.files.lines import existing_folder, find_file, find_splits, read_lines
from plant_dist.data.files.sources import config_digest
from plant_dist.data.files.sparse import (
    FILTERS,
    LABEL_MATRICES,
    load_label_rows,
    matrix_shape,
    read_pairs,
    refuse_features,
    stream_matrix,
)
from plant_dist.data.files.tables import parse_json
from plant_dist.data.records import Document, Label
from plant_dist.errors import ConfigError, DataError
from plant_dist.logs import get_logger

_log = get_logger(__name__)
HOLDS = "{trn,tst,lbl}.json.gz, or {trn,tst}_X.txt with Y.txt and {trn,tst}_X_Y.txt"
_RAW_FOLDERS = ("", "raw", "raw_data")


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    fields: list[str] | None = None
    label_fields: list[str] | None = None
    ids: str = "line"
    filters: bool = True


class Entry(NamedTuple):
    """A document before its labels are named."""

    where: str
    name: str | None
    text: str
    targets: list[int]


class Part(NamedTuple):
    """The files of a split; without a matrix, the texts' lines are JSON that holds the targets."""

    split: str
    texts: Path
    matrix: Path | None
    filter: Path | None


def open(data: DataConfig) -> XmcCorpus:
    """Open the corpus of a folder.

    Raises:
        ConfigError: an option is unknown.
        DataError: the folder is missing, holds features only, or lacks a file.
    """
    options = parse_options(Options, data.reader_options, "xmc")
    if options.ids not in ("line", "uid"):
        raise ConfigError(f"data.reader_options.ids is {options.ids!r}; choose line or uid")
    folder = existing_folder(data.path, HOLDS)
    filters = find_splits(folder, *FILTERS) if options.filters else {}
    raw = find_splits(folder, "{}.json", "{}.raw.json", "{}.jsonl")
    lines = find_splits(folder, *(f"{raw}/{{}}_X.txt".lstrip("/") for raw in _RAW_FOLDERS))
    if not raw and not lines:
        refuse_features(folder, HOLDS)
        raise DataError(f"{folder} holds no raw text; name the folder that holds {HOLDS}")
    if raw:
        parts = [Part(split, path, None, filters.get(split)) for split, path in raw.items()]
        labels = _json_labels(folder, data, options)
    else:
        matrices = find_splits(folder, *LABEL_MATRICES)
        for split, path in lines.items():
            if split not in matrices:
                raise DataError(f"{path} has no targets beside it; add trn_X_Y.txt or Y.trn.npz")
        parts = [Part(s, path, matrices[s], filters.get(s)) for s, path in lines.items()]
        labels = _line_labels(folder, data, parts)
    return XmcCorpus(data, options, parts, labels)


def _label_file(folder: Path, data: DataConfig, *names: str) -> Path | None:
    return Path(data.labels_path) if data.labels_path else find_file(folder, *names)


def _json_labels(folder: Path, data: DataConfig, options: Options) -> NumberedLabels:
    path = _label_file(folder, data, "lbl.json", "lbl.raw.json", "Yf.txt")
    if path is None:
        # Sets without label features: L is the width of the matrices that come with them.
        matrices = find_splits(folder, *LABEL_MATRICES)
        if not matrices:
            raise DataError(
                f"{folder} has no lbl.json, Yf.txt or trn_X_Y.txt to say how many labels there "
                "are; add one, or set data.labels_path"
            )
        return _unnamed(list(matrices.values()))
    if ".json" not in path.name:
        return line_labels(path, data)
    fields = options.label_fields or ["title"]
    return NumberedLabels(
        lambda: (_join(values, fields, where) for where, values in _objects(path, data)), path
    )


def _line_labels(folder: Path, data: DataConfig, parts: Sequence[Part]) -> NumberedLabels:
    unnamed = _unnamed([part.matrix for part in parts if part.matrix])
    path = _label_file(folder, data, *(f"{raw}/Y.txt".lstrip("/") for raw in _RAW_FOLDERS))
    if path is None:
        return unnamed
    labels = line_labels(path, data)
    if labels.count != unnamed.count:
        raise DataError(
            f"{path} names {labels.count} labels, {unnamed.source} has {unnamed.count} columns; "
            "take both from one source"
        )
    return labels


def _unnamed(matrices: Sequence[Path]) -> NumberedLabels:
    widths = {matrix_shape(matrix)[1] for matrix in matrices}
    if len(widths) > 1:
        raise DataError(
            f"{matrices[0]} and {matrices[1]} have different numbers of labels; take both from "
            "one source"
        )
    return unnamed_labels(widths.pop(), matrices[0])


class XmcCorpus:
    """Texts and label numbers, with the pairs that a filter file leaves out."""

    def __init__(
        self, data: DataConfig, options: Options, parts: list[Part], labels: NumberedLabels
    ) -> None:
        self._data, self._options = data, options
        self._parts, self._labels = parts, labels

    def describe(self) -> str:
        """Return the text files and filters in one line."""
        names = ", ".join(part.texts.name for part in self._parts)
        filters = ", ".join(part.filter.name for part in self._parts if part.filter)
        return f"xmc, {self._data.path}: {names}; filters: {filters or 'none'}"

    def fingerprint(self) -> str:
        """Return a hash of the folder."""
        return config_digest(self._data)

    def labels(self) -> Iterator[Label]:
        """Stream the labels in the order of their file."""
        return iter(self._labels)

    def documents(self) -> Iterator[Document]:
        """Stream the documents of every split."""
        self._mention_missing_filter()
        for part in self._parts:
            entries = self._json(part) if part.matrix is None else self._lines(part)
            ignored = self._ignored(part)
            for number, entry in enumerate(entries):
                labels = self._labels.ids(entry.targets, entry.where)
                left_out = ignored.row(number).tolist() if ignored else []
                yield Document(
                    entry.name or f"{part.split}-{number}", entry.text, labels, part.split,
                    where=entry.where, ignored=tuple(map(str, left_out)),
                )  # fmt: skip

    def _mention_missing_filter(self) -> None:
        # Label texts mark the sets in which documents are labels too; few of those have none.
        named = next((label.text for label in self._labels), "")
        missing = [part for part in self._parts if part.split == "test" and part.filter is None]
        if self._options.filters and named and missing:
            _log.warning(
                "no filter file beside %s: published figures of sets with label texts leave out "
                "the pairs of filter_labels_test.txt (data.reader_options.filters=false is silent)",
                missing[0].texts,
            )

    def _ignored(self, part: Part) -> Csr | None:
        if part.filter is None:
            return None
        # Counted first: a pair of a document that there is not would silently filter nothing.
        documents = sum(1 for _ in read_lines(part.texts, "latin-1"))
        return read_pairs(part.filter, documents, self._labels.count)

    def _json(self, part: Part) -> Iterator[Entry]:
        fields = self._options.fields or ["title", "content"]
        for where, values in _objects(part.texts, self._data):
            targets = values.get("target_ind")
            # `True` is an int in Python; a label is not.
            if not isinstance(targets, list) or any(type(one) is not int for one in targets):
                raise DataError(
                    f"{where}: target_ind is {str(targets)[:80]}, expected a list of numbers"
                )
            name = _uid(values, where) if self._options.ids == "uid" else None
            yield Entry(where, name, _join(values, fields, where), targets)

    def _lines(self, part: Part) -> Iterator[Entry]:
        texts = read_lines(part.texts, self._data.encoding)
        assert part.matrix is not None  # the other layout is `_json`
        number = 0
        rows = _label_rows(part.matrix)
        for number, text in enumerate(texts, 1):
            targets = next(rows, None)
            if targets is None:
                break
            yield Entry(f"{part.texts}:{number}", None, text, targets)
        else:
            # Both must end here: a row that is left belongs to a text that is lost.
            if next(rows, None) is None:
                return
        raise DataError(
            f"{part.texts} and {part.matrix} have different numbers of documents (line {number}); "
            "take both from one source"
        )


def _label_rows(path: Path) -> Iterator[list[int]]:
    if path.suffix == ".npz":
        rows = load_label_rows(path)
        return (rows.row(number).tolist() for number in range(rows.size))
    # A value of 0 is no label: some tools write the zeros of a matrix out.
    return (
        [column for column, value in zip(row.columns, row.values, strict=True) if value]
        for row in stream_matrix(path)[1]
    )


def _objects(path: Path, data: DataConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    # Empty lines are errors: a line's number is its meaning.
    for number, line in enumerate(read_lines(path, data.encoding), 1):
        where = f"{path}:{number}"
        yield where, parse_json(line, where)


def _join(values: Mapping[str, Any], fields: Sequence[str], where: str) -> str:
    """Return the fields that are there and not empty, a line each."""
    if not any(field in values for field in fields):
        raise DataError(
            f"{where}: none of the fields {', '.join(fields)}; found: {', '.join(values)}; set "
            "data.reader_options.fields (label_fields)"
        )
    texts = [values.get(field) or "" for field in fields]
    for field, text in zip(fields, texts, strict=True):
        if not isinstance(text, str):
            raise DataError(f"{where}: {field} holds {str(text)[:80]!r}, expected text")
    return "\n".join(text for text in texts if text)


def _uid(values: Mapping[str, Any], where: str) -> str:
    name = values.get("uid")
    if isinstance(name, int) and not isinstance(name, bool):
        return str(name)
    if isinstance(name, str) and name:
        return name
    raise DataError(f"{where}: no uid; set data.reader_options.ids: line")
