"""CodiEsp as released for CLEF eHealth 2020: clinical cases with ICD-10 codes and their evidence.

`data.path` holds folders `train`, `dev` and `test`, or a folder that holds them
(`final_dataset_v4_to_publish`). In each: `text_files` (Spanish) and `text_files_en` (translated by
machine), a text a case; `trainD.tsv` (diagnoses) and `trainP.tsv` (procedures), a case and a code a
line; `trainX.tsv`, a case, a type, a code, the words and their positions in the Spanish text.
Options (`data.reader_options`): `codes` is `diagnoses`, `procedures` or `both`; `language` is `es`
or `en`. `data.labels_path` may name the task's list of codes (`codiesp-D_codes.tsv`) or the folder
of both lists. Codes are written in capitals, since the release mixes both. Must not know how labels
are indexed or text is tokenised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.sources import sources_digest
from plant_dist.data.files.standoff import Fit, parse_positions
from plant_dist.data.files.tables import open_text
from plant_dist.data.records import SPLITS, Document, Label, Span
from plant_dist.errors import ConfigError, DataError

FOLDERS = dict(zip(("train", "dev", "test"), SPLITS, strict=True))
TEXTS = {"es": "text_files", "en": "text_files_en"}
# By option, the letters of the files, and the types in the file of evidence.
CODES = {"diagnoses": "D", "procedures": "P", "both": "DP"}
TYPES = {"DIAGNOSTICO": "D", "PROCEDIMIENTO": "P"}


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    codes: str = "diagnoses"
    language: str = "es"


def open(data: DataConfig) -> CodiespCorpus:
    """Open a release of CodiEsp.

    Raises:
        ConfigError: no path is set, or an option is unknown.
        DataError: the folder is none of a release.
    """
    options = parse_options(Options, data.reader_options, "codiesp")
    for name, value, known in (
        ("codes", options.codes, CODES),
        ("language", options.language, TEXTS),
    ):
        if value not in known:
            raise ConfigError(
                f"data.reader_options.{name} is {value!r}; it must be one of {', '.join(known)}"
            )
    if data.path is None:
        raise ConfigError(
            "data.path is not set; name the folder of the release (`plant-dist fetch codiesp`)"
        )
    return CodiespCorpus(_find_release(Path(data.path)), data, options)


class _Row(NamedTuple):
    """A line of a table: a code of a case and, in that of evidence, its words in the text."""

    where: str
    code: str
    positions: str = ""
    words: str = ""


class CodiespCorpus:
    """Cases as documents, codes as labels, positions as evidence (in Spanish)."""

    def __init__(self, folder: Path, data: DataConfig, options: Options) -> None:
        self._folder, self._data, self._options = folder, data, options
        self._letters = CODES[options.codes]

    def describe(self) -> str:
        """Return the source and the choice in one line."""
        return f"codiesp, {self._options.codes}, {self._options.language}, {self._folder}"

    def fingerprint(self) -> str:
        """Return a hash of the release, and of the lists of codes."""
        names = [self._data.labels_path] if self._data.labels_path else []
        return sources_digest([str(self._folder), *names])

    def documents(self) -> Iterator[Document]:
        """Stream the cases of each split by name, also those without a code.

        Raises:
            DataError: a case has no text, or most quotes are not what their spans hold.
        """
        fit = Fit()
        for folder, split in FOLDERS.items():
            codes, mentions = self._codes(folder), self._mentions(folder)
            texts = self._folder / folder / TEXTS[self._options.language]
            paths = {path.stem: path for path in sorted(texts.glob("*.txt"))}
            for case, found in (codes | mentions).items():
                if case not in paths:
                    raise DataError(f"{found[0].where}: there is no text {texts / case}.txt")
            for case, path in paths.items():
                text = _read(path, self._data.encoding)
                labels = tuple(dict.fromkeys(one.code for one in codes.get(case, ())))
                evidence = tuple(
                    span for one in mentions.get(case, ()) for span in _spans(one, text, fit)
                )
                yield Document(case, text, labels, split, evidence=evidence, where=str(path))
        fit.report()

    def labels(self) -> Iterator[Label]:
        """Stream the codes that documents carry, sorted, described as `data.labels_path` has it."""
        texts = self._descriptions()
        rows = (found for folder in FOLDERS for found in self._codes(folder).values())
        used = {one.code for found in rows for one in found}
        for code in sorted(used):
            yield Label(code, texts.get(code, ""))

    def _codes(self, folder: str) -> dict[str, list[_Row]]:
        """Return case → its codes, in the order of the files."""
        found: dict[str, list[_Row]] = {}
        for letter in self._letters:
            path = self._folder / folder / f"{folder}{letter}.tsv"
            for (case, code), where in _rows(path, 2, self._data.encoding):
                found.setdefault(case, []).append(_Row(where, code.upper()))
        return found

    def _mentions(self, folder: str) -> dict[str, list[_Row]]:
        """Return case → where its codes are mentioned; nothing for the translation."""
        found: dict[str, list[_Row]] = {}
        # Positions count characters of the Spanish text.
        if self._options.language != "es":
            return found
        path = self._folder / folder / f"{folder}X.tsv"
        for (case, kind, code, words, positions), where in _rows(path, 5, self._data.encoding):
            letter = TYPES.get(kind.upper())
            if letter is None:
                raise DataError(f"{where}: type {kind!r} is neither {' nor '.join(TYPES)}")
            if letter in self._letters:
                row = _Row(where, code.upper(), positions, words)
                found.setdefault(case, []).append(row)
        return found

    def _descriptions(self) -> dict[str, str]:
        if self._data.labels_path is None:
            return {}
        place = Path(self._data.labels_path)
        files = [place]
        if place.is_dir():
            files = [place / f"codiesp-{letter}_codes.tsv" for letter in self._letters]
        # Code, Spanish, English; the list of procedures has a fourth column.
        column = 1 if self._options.language == "es" else 2
        return {
            fields[0].upper(): fields[column].strip()
            for path in files
            for fields, _ in _rows(path, 3, self._data.encoding, more=True)
        }


def _spans(row: _Row, text: str, fit: Fit) -> Iterator[Span]:
    fragments = parse_positions(row.positions, row.where)
    fit.check(text, fragments, row.words, row.where)
    for start, end in fragments:
        yield Span(row.code, start, end)


def _read(path: Path, encoding: str) -> str:
    # Line ends untouched, since positions count them.
    with open_text(path, encoding, newline="") as stream:
        return stream.read()


def _find_release(place: Path) -> Path:
    """Return the folder that holds the splits: `place`, or the one folder in it that does."""
    inner = sorted(one for one in place.iterdir() if one.is_dir()) if place.is_dir() else []
    for folder in (place, *inner):
        if all((folder / split).is_dir() for split in FOLDERS):
            return folder
    raise DataError(
        f"neither {place} nor a folder in it holds {', '.join(FOLDERS)}; unpack codiesp.zip "
        "(`plant-dist fetch codiesp`) and set data.path to where it lies"
    )


def _rows(
    path: Path, columns: int, encoding: str, more: bool = False
) -> Iterator[tuple[list[str], str]]:
    """Stream the fields of a file of tab-separated lines without a header, and `file:line`."""
    if not path.is_file():
        raise DataError(
            f"file {path} does not exist; version 4 (May 2020) has the codes of all splits"
        )
    # Not as CSV: a quote is an ordinary character here.
    with open_text(path, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            fields = [one.strip() for one in line.rstrip("\r\n").split("\t")]
            if not line.strip():
                continue
            where = f"{path}:{number}"
            if len(fields) < columns or (len(fields) > columns and not more):
                raise DataError(f"{where}: found {len(fields)} fields, expected {columns}")
            if not all(fields[:2]):
                raise DataError(f"{where}: an empty field in {line.strip()[:60]!r}")
            yield fields, where
