"""Corpora and vocabularies of Annif.

Documents (`data.path`, or `data.train_path` and so on, each a file or a folder):
TSV without header, `text<TAB><uri> <uri>`; CSV with columns `text` and `subject_uris`; JSON Lines
with `text` and `subjects` (`uri` or `label`); a folder of `.txt` with `.tsv` or `.key` beside them,
or of `.json`. The vocabulary (`data.labels_path`): TSV `<uri><TAB>label`, CSV with `uri` and
`label_xx`, or SKOS in any serialisation of rdflib (extra `annif`). A label's id is its URI. Options
(`data.reader_options`): `language` of preferred labels. Must not know Annif itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.lines import read_lines, words
from plant_dist.data.files.skos import is_rdf, read_concepts
from plant_dist.data.files.sources import config_digest, named_sources
from plant_dist.data.files.tables import Row, parse_json, read_rows
from plant_dist.data.records import Document, Label
from plant_dist.errors import DataError


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    language: str | None = None


def open(data: DataConfig) -> AnnifCorpus:
    """Open the corpus of files or folders.

    Raises:
        ConfigError: no path is set, or an option is unknown.
    """
    options = parse_options(Options, data.reader_options, "annif")
    return AnnifCorpus(data, options, named_sources(data))


class AnnifCorpus:
    """Documents with subjects out of a vocabulary."""

    def __init__(
        self, data: DataConfig, options: Options, sources: list[tuple[str, str | None]]
    ) -> None:
        self._data, self._options, self._sources = data, options, sources

    def describe(self) -> str:
        """Return the sources in one line."""
        return f"annif, {', '.join(path for path, _ in self._sources)}"

    def fingerprint(self) -> str:
        """Return a hash of the sources."""
        return config_digest(self._data)

    def labels(self) -> Iterator[Label]:
        """Stream the vocabulary's subjects; none where there is no vocabulary."""
        name = self._data.labels_path
        if name is None:
            return
        path = Path(name)
        if is_rdf(path):
            yield from read_concepts(path, self._options.language)
        elif _kind(path) == ".csv":
            yield from self._csv_labels(path)
        else:
            for number, line in enumerate(read_lines(path, self._data.encoding), 1):
                if line.strip():
                    where, (uri, _, rest) = f"{path}:{number}", line.partition("\t")
                    yield Label(_uri(uri, where), rest.partition("\t")[0], where=where)

    def _csv_labels(self, path: Path) -> Iterator[Label]:
        for row in read_rows(path, self._data.encoding):
            uri = _uri(row.get("uri", "data.labels_path"), row.where)
            yield Label(uri, row.values[self._label_column(row)], where=row.where)

    def _label_column(self, row: Row) -> str:
        language = self._options.language
        columns = [one for one in row.values if one == "label" or one.startswith("label_")]
        wanted = f"label_{language}" if language else None
        # With one column there is no choice to make.
        if wanted in columns or (wanted is None and len(columns) == 1):
            return wanted or columns[0]
        raise DataError(
            f"{row.where}: label columns {', '.join(columns) or 'none'}; set "
            "data.reader_options.language to one of their endings"
        )

    def documents(self) -> Iterator[Document]:
        """Stream the documents of every source; see `Corpus`.

        Raises:
            DataError: a source is not there, or a line or object lacks a field.
        """
        for source, split in self._sources:
            path = Path(source)
            if path.is_dir():
                yield from self._folder(path, split)
                continue
            if not path.is_file():
                raise DataError(f"{source} is neither a file nor a folder; check data.path")
            for number, (name, text, labels, where) in enumerate(self._file(path), 1):
                yield Document(
                    name or f"{split or path.stem}-{number}", text, labels, split, where=where
                )

    def _file(self, path: Path) -> Iterator[tuple[str | None, str, tuple[str, ...], str]]:
        if _kind(path) == ".csv":
            for row in read_rows(path, self._data.encoding):
                text, uris = (row.get(one, "data.path") for one in ("text", "subject_uris"))
                labels = tuple(_uri(uri, row.where) for uri in words(uris))
                yield row.values.get("document_id") or None, text, labels, row.where
        elif _kind(path) in (".jsonl", ".json", ".ndjson"):
            for row in read_rows(path, self._data.encoding):
                yield self._object(row.values, row.where)
        else:
            for number, line in enumerate(read_lines(path, self._data.encoding), 1):
                where = f"{path}:{number}"
                text, tab, uris = line.partition("\t")
                if not tab:
                    raise DataError(f"{where}: no tab; expected `text<TAB><uri> <uri>`")
                yield None, text, tuple(_uri(uri, where) for uri in words(uris)), where

    def _object(
        self, values: Mapping[str, Any], where: str
    ) -> tuple[str | None, str, tuple[str, ...], str]:
        text, subjects = values.get("text"), values.get("subjects", [])
        if not isinstance(text, str) or not isinstance(subjects, list):
            raise DataError(f"{where}: expected `text` and a list `subjects`, found {list(values)}")
        name = values.get("document_id")
        labels = tuple(self._subject(one, where) for one in subjects)
        return None if name is None else str(name), text, labels, where

    def _subject(self, subject: Any, where: str) -> str:
        if isinstance(subject, Mapping):
            if isinstance(subject.get("uri"), str):
                return _uri(subject["uri"], where)
            if isinstance(subject.get("label"), str):
                return self._by_name(subject["label"], where)
        raise DataError(f"{where}: subject {str(subject)[:80]} has neither uri nor label")

    def _folder(self, folder: Path, split: str | None) -> Iterator[Document]:
        files = sorted(one for one in folder.iterdir() if one.suffix in (".txt", ".json"))
        if not files:
            raise DataError(f"{folder} holds no .txt or .json document; check data.path")
        for path in files:
            # Whole at once: a document is one file here.
            content = "\n".join(read_lines(path, self._data.encoding))
            if path.suffix == ".json":
                # `parse_json` counts columns, so a file over several lines goes through as one.
                values = parse_json(" ".join(content.split("\n")), str(path))
                name, text, labels, where = self._object(values, str(path))
                yield Document(name or path.stem, text, labels, split, where=where)
            else:
                labels = self._subject_file(path)
                yield Document(path.stem, content, labels, split, where=str(path))

    def _subject_file(self, document: Path) -> tuple[str, ...]:
        found = [document.with_suffix(kind) for kind in (".tsv", ".key")]
        path = next((one for one in found if one.is_file()), None)
        if path is None:
            return ()
        labels = []
        for number, line in enumerate(read_lines(path, self._data.encoding), 1):
            where, first = f"{path}:{number}", line.partition("\t")[0].strip()
            if first.startswith("<") and first.endswith(">"):
                labels.append(_uri(first, where))
            elif first:
                labels.append(self._by_name(first, where))
        return tuple(labels)

    def _by_name(self, name: str, where: str) -> str:
        """Return the id of a subject's name; the name itself where no subject has it."""
        ids = self._ids_by_name.get(name, [name])
        if len(ids) > 1:
            raise DataError(
                f"{where}: {name!r} is the name of {ids[0]} and of {ids[1]}; give the URI (.tsv)"
            )
        return ids[0]

    @cached_property
    def _ids_by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for label in self.labels():
            found.setdefault(label.text, []).append(label.id)
        return found


def _kind(path: Path) -> str:
    return Path(path.name.lower().removesuffix(".gz")).suffix


def _uri(word: str, where: str) -> str:
    """Return a URI without its angle brackets."""
    uri = word.strip()
    if uri.startswith("<") and uri.endswith(">"):
        uri = uri[1:-1]
    if not uri or any(one in uri for one in '<>"\t '):
        raise DataError(f"{where}: found {word[:80]!r} where a URI should be")
    return uri
