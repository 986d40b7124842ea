"""Any table of documents: JSON Lines, CSV, TSV, Parquet, or what `datasets` can read.

The user names the columns in the `data` section. Options (`data.reader_options`):
`allow_download` fetches a dataset by hub name, `subset` is its configuration and `revision` its
branch, `quotes: false` reads CSV and TSV whose quotes are ordinary characters. Must not know
splits made by us.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.columns import evidence_spans, label_ids, label_of, name_of
from plant_dist.data.files.hub import read_dataset
from plant_dist.data.files.sources import config_digest, named_sources
from plant_dist.data.files.tables import Row, is_table, read_rows
from plant_dist.data.records import Document, Label
from plant_dist.data.splits import named_split
from plant_dist.errors import DataError

OPTIONAL = ("id_column", "group_column", "evidence_column")  # settings of `data`


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
        """Stream the documents of every source; see `Corpus`.

        Raises:
            DataError: a row cannot be read, or none has a column that the config names.
        """
        number, missing, seen = 0, _named_columns(self._data), ""
        for path, split in self._sources:
            for named, row in self._rows(path):
                # Over all sources, so that two files do not both begin with row-1.
                number += 1
                if missing:
                    missing = {k: one for k, one in missing.items() if one not in row.values}
                    seen = ", ".join(map(str, row.values))
                yield self._document(row, number, split or named)
        # Misspelt, a column of groups would pass for a corpus without any, and patients leak.
        for setting, column in missing.items() if number else ():
            raise DataError(
                f"no document has the column {column!r} that data.{setting} names; columns found: "
                f"{seen or 'none'}; correct it, or leave it out"
            )

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
            id=name_of(values[data.id_column], row, data.id_column)
            if data.id_column in values
            else f"row-{number}",
            text=text or "",
            labels=label_ids(labels, data.labels_separator, row, data.labels_column),
            split=_split(split or values.get(data.split_column), row, data),
            group=None if group in (None, "") else name_of(group, row, data.group_column),
            evidence=evidence_spans(values.get(data.evidence_column), row, data.evidence_column),
            where=row.where,
        )


def _named_columns(data: DataConfig) -> dict[str, str]:
    """Return the columns that documents may lack and the config names, by setting."""
    asked = {name: str(getattr(data, name)) for name in OPTIONAL}
    # As they are called by default, they are there or not.
    usual = {entry.name: entry.default for entry in fields(data)}
    return {name: column for name, column in asked.items() if column != usual[name]}


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
