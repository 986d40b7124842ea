"""Any table of documents: JSON Lines, CSV, TSV, Parquet, or what `datasets` can read.

The user names the columns in the `data` section. Options (`data.reader_options`):
`allow_download` fetches a dataset by hub name, `subset` is its configuration and `revision` its
branch, `quotes: false` reads CSV and TSV whose quotes are ordinary characters. Must not know
splits made by us.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.hub import read_dataset
from plant_dist.data.lines import read_lines
from plant_dist.data.records import Document, Label, Span
from plant_dist.data.sources import config_digest, named_sources
from plant_dist.data.splits import named_split
from plant_dist.data.tables import Row, is_table, read_rows
from plant_dist.errors import DataError


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    allow_download: bool = False
    subset: str | None = None
    revision: str | None = None
    quotes: bool = True


def open(data: DataConfig) -> GenericCorpus:
    """Open the corpus of `data.path` and `data.{train,validation,test}_path`.

    Raises:
        ConfigError: no path is set, or an option is unknown.
    """
    return GenericCorpus(data, parse_options(Options, data.reader_options, "generic"))


class GenericCorpus:
    """Documents and labels of tables whose columns the user has named."""

    def __init__(self, data: DataConfig, options: Options) -> None:
        self._data = data
        self._options = options
        self._sources = named_sources(data)

    def describe(self) -> str:
        """Return the sources in one line."""
        named = [f"{split}: {path}" if split else path for path, split in self._sources]
        return f"generic, {', '.join(named)}"

    def fingerprint(self) -> str:
        """Return a hash of every file, folder or name that is read."""
        return config_digest(self._data)

    def documents(self) -> Iterator[Document]:
        """Stream the documents of every source; see `Corpus`."""
        number = 0
        for path, split in self._sources:
            for named, row in self._rows(path):
                # Over all sources, so that two files do not both begin with row-1.
                number += 1
                yield self._document(row, number, split or named)

    def labels(self) -> Iterator[Label]:
        """Stream the labels of `data.labels_path`; none where it is unset."""
        if self._data.labels_path is None:
            return
        for _, row in self._rows(self._data.labels_path):
            yield label_of(row, self._data)

    def _rows(self, source: str) -> Iterator[tuple[str | None, Row]]:
        """Stream (split named by the source, row)."""
        path = Path(source)
        # A name with a known suffix is meant as a file, also where there is none.
        if path.is_file() or is_table(path):
            for row in read_rows(path, self._data.encoding, self._options.quotes):
                yield None, row
        else:
            asked = self._options
            yield from read_dataset(source, asked.subset, asked.allow_download, asked.revision)

    def _document(self, row: Row, number: int, split: str | None) -> Document:
        data, values = self._data, row.values
        text = row.get(data.text_column, "data.text_column")
        labels = row.get(data.labels_column, "data.labels_column")
        # Optional columns may be absent; text and labels must be there in every row, because a
        # misspelt column would otherwise pass for a corpus without labels.
        group = values.get(data.group_column)
        if text is not None and not isinstance(text, str):
            raise DataError(
                f"{row.where}: column {data.text_column!r} holds {text!r}, expected text"
            )
        return Document(
            id=_name(values[data.id_column], row, data.id_column)
            if data.id_column in values
            else f"row-{number}",
            text=text or "",
            labels=label_ids(labels, data.labels_separator, row, data.labels_column),
            split=_split(split or values.get(data.split_column), row, data),
            group=None if group in (None, "") else _name(group, row, data.group_column),
            evidence=evidence_spans(values.get(data.evidence_column), row, data.evidence_column),
            where=row.where,
        )


def label_of(row: Row, data: DataConfig) -> Label:
    """Read a label from the columns that the configuration names.

    Raises:
        DataError: the row has no id, or an id or a parent is no name.
    """
    # Ids as strings throughout: read as numbers, ICD-9 codes lose their leading zeros.
    label = _name(row.get(data.label_id_column, "data.label_id_column"), row, "id")
    parents = row.values.get(data.label_parent_column)
    if parents is None:  # a list of parents often stands in the plural
        parents = row.values.get(f"{data.label_parent_column}s")
    several = parents if isinstance(parents, list) else [parents]
    text = row.values.get(data.label_text_column)
    return Label(
        id=label,
        text=str(text) if text is not None else "",
        parents=tuple(_name(one, row, "parent") for one in several if one not in (None, "")),
    )


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
        yield from (Label(line, line) for line in read_lines(path, data.encoding))


def _name(value: Any, row: Row, column: str) -> str:
    """Return an id, group or label as a string; only strings and integers are names."""
    if isinstance(value, str) and value.strip():
        return value
    # True is an int in Python. A float is refused: 250.0 was 250.00 before a spreadsheet read it.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{row.where}: column {column!r} holds {value!r}, expected a name (a string, not empty)"
    )


def label_ids(value: Any, separator: str, row: Row, column: str) -> tuple[str, ...]:
    """Read a row's labels: a list, one name, or names in one string with a separator.

    Raises:
        DataError: a label is neither text nor an integer.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        # White space around a delimited label is layout; inside a list it is part of the label.
        parts = (part.strip() for part in value.split(separator or None))
        return tuple(part for part in parts if part)
    several = value if isinstance(value, list) else [value]
    return tuple(_name(one, row, column) for one in several)


def _split(word: Any, row: Row, data: DataConfig) -> str | None:
    # Where the split is made by us, the corpus's own words need not even be readable.
    if word in (None, "") or data.split != "given":
        return None
    split = named_split(word) if isinstance(word, str) else None
    if split is None:
        raise DataError(
            f"{row.where}: split {word!r} is not train, validation (val, dev) or test; correct "
            "it, or set data.split: random"
        )
    return split


def evidence_spans(value: Any, row: Row, column: str) -> tuple[Span, ...]:
    """Read evidence, a list of {label, start, end} or the JSON of one (in CSV).

    Raises:
        DataError: it is anything else.
    """
    try:
        spans = json.loads(value) if isinstance(value, str) and value else value or []
        return tuple(
            Span(_name(one["label"], row, column), int(one["start"]), int(one["end"]))
            for one in spans
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{row.where}: column {column!r} holds {str(value)[:80]!r}, expected a list of "
            "{label, start, end}; name another column in data.evidence_column"
        ) from None
