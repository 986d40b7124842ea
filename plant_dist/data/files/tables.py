"""Rows out of files: JSON Lines, CSV, TSV (each also compressed) and Parquet, as a stream.

A row is a mapping from column to value and the place it came from, so that whoever finds a wrong
value can name file and line. Must not know which columns mean what.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from plant_dist.data.files.compressed import BROKEN, KINDS, compression, open_bytes
from plant_dist.errors import DataError

# `.json` as well: the raw texts of the XMC collection are JSON Lines under that name.
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET_SUFFIXES = (".parquet", ".pq")
SUFFIXES = (*JSON_SUFFIXES, *DELIMITERS, *PARQUET_SUFFIXES)
BATCH_ROWS = 1024


class Row(NamedTuple):
    """One row: column values, and `file:line` (text) or `file row n` (Parquet)."""

    where: str
    values: Mapping[str, Any]

    def get(self, column: str, setting: str) -> Any:
        """Return a column's value.

        Args:
            column: its name.
            setting: the config key that chose the name, for the error.

        Raises:
            DataError: the row has no such column; names those it has.
        """
        if column not in self.values:
            found = ", ".join(map(str, self.values)) or "none"
            raise DataError(
                f"{self.where}: no column {column!r}; columns found: {found}; set {setting}"
            )
        return self.values[column]


def is_table(path: Path) -> bool:
    """Say whether a file name has a suffix that `read_rows` knows."""
    return _suffix(path) in SUFFIXES


def read_rows(path: Path, encoding: str = "utf-8", quotes: bool = True) -> Iterator[Row]:
    """Stream the rows of a file; the suffix says its format.

    Args:
        path: `.jsonl`, `.ndjson`, `.json` (one object a line), `.csv`, `.tsv`, `.tab`, each also
            with `.gz`; `.parquet`, `.pq`.
        encoding: of text files; a byte-order mark is skipped in UTF-8.
        quotes: whether a CSV or TSV field may be quoted with `"`.

    Raises:
        DataError: the file is missing, of an unknown suffix, truncated, holds bytes that do not
            decode, a line that does not parse, or a row with too few or too many fields.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        raise DataError(f"file {path} does not exist; check data.path and its like")
    # Generators all the way: a corpus of any size passes through in constant memory.
    suffix = _suffix(path)
    if suffix in JSON_SUFFIXES:
        yield from _json_rows(path, encoding)
    elif suffix in DELIMITERS:
        yield from _delimited_rows(path, encoding, DELIMITERS[suffix], quotes)
    elif suffix in PARQUET_SUFFIXES:
        yield from _parquet_rows(path)
    else:
        known = " ".join(SUFFIXES)
        raise DataError(
            f"file {path} has an unknown suffix; known are {known} (.gz, .xz, .bz2, .lz4 allowed)"
        )


def read_stream(
    stream: BinaryIO, name: str, kind: str = "auto", text_column: str = "text"
) -> Iterator[Row]:
    """Stream the rows of an open stream, such as standard input.

    Args:
        stream: bytes, UTF-8.
        name: stands for the file in errors.
        kind: `jsonl`, `csv`, `tsv`, `lines` (one text a line), or `auto`: JSON where the first
            character that is no space is a brace, else lines.
        text_column: the column that a line's text gets.

    Raises:
        DataError: as `read_rows`.
    """
    # `csv` must see line ends as they are, or a quoted one would be changed (its documentation).
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="" if kind in _TABLES else "\n")
    try:
        if kind in _TABLES:
            yield from _parse_delimited(text, name, DELIMITERS[f".{kind}"], quotes=True)
        else:
            yield from _parse_lines(text, name, kind, text_column)
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: bytes that are not utf-8 ({error.reason})") from None


_TABLES = ("csv", "tsv")


def _parse_lines(stream: IO[str], name: str, kind: str, text_column: str) -> Iterator[Row]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        # The first line decides for all: a text that begins with a brace comes late, if ever.
        if kind == "auto":
            kind = "jsonl" if line.lstrip().startswith("{") else "lines"
        where = f"{name}:{number}"
        values = parse_json(line, where) if kind == "jsonl" else {text_column: line.strip()}
        yield Row(where, values)


def _suffix(path: Path) -> str:
    # Of `notes.csv.gz`, `.csv`; users of Windows write `NOTES.CSV`.
    name = Path(path.name.lower())
    return (name.with_suffix("") if name.suffix in KINDS else name).suffix


def _json_rows(path: Path, encoding: str) -> Iterator[Row]:
    # Only \n ends a line, as in every tool that counts lines; a \r before it is white space.
    with open_text(path, encoding, newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f"{path}:{number}"
                yield Row(where, parse_json(line, where))


def parse_json(line: str, where: str) -> Mapping[str, Any]:
    """Return the object that a line of JSON holds.

    Raises:
        DataError: it is not JSON, or no object; names `where`.
    """
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON: {error.msg} at column {error.colno}; "
            "each line must be one JSON object"
        ) from None
    if not isinstance(values, dict):
        raise DataError(f"{where}: found a JSON {type(values).__name__}, expected an object")
    return values


def _delimited_rows(path: Path, encoding: str, delimiter: str, quotes: bool) -> Iterator[Row]:
    with open_text(path, encoding, newline="") as stream:
        yield from _parse_delimited(stream, str(path), delimiter, quotes)


def _parse_delimited(stream: IO[str], name: str, delimiter: str, quotes: bool) -> Iterator[Row]:
    csv.field_size_limit(sys.maxsize)  # the module's own limit is shorter than a clinical note
    quoting: Any = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    # Strict, because the lenient reader silently swallows lines after a stray quote.
    reader = csv.reader(stream, delimiter=delimiter, quoting=quoting, strict=True)
    start = 1  # line where the row begins; a quoted field may span many
    header: list[str] = []
    try:
        for fields in reader:
            where = f"{name}:{start}"
            start = reader.line_num + 1
            if not fields:  # a blank line
                continue
            if not header:
                header = fields
                if twice := next((one for one in header if header.count(one) > 1), None):
                    raise DataError(f"{where}: two columns are called {twice!r}; rename one")
                continue
            # `zip` would cut or fill such a row without a word, and shift text into labels.
            if len(fields) != len(header):
                raise DataError(
                    f"{where}: found {len(fields)} fields, the header has {len(header)}"
                )
            yield Row(where, dict(zip(header, fields, strict=True)))
    except csv.Error as error:
        raise DataError(
            f"{name}:{start}: {error}; if quotes are ordinary characters in this file set "
            "data.reader_options.quotes: false"
        ) from None


def _parquet_rows(path: Path) -> Iterator[Row]:
    # Imported here: `datasets` takes a second to load and text files do not need it.
    from plant_dist.data.files.features import decode_classes

    try:
        file = pq.ParquetFile(path)
        start = 1
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            rows = decode_classes(batch, file.schema_arrow, str(path))
            for number, values in enumerate(rows, start):
                yield Row(f"{path} row {number}", values)
            start += batch.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path} is not a whole Parquet file: {reason}") from None


@contextmanager
def open_text(path: Path, encoding: str, newline: str) -> Iterator[IO[str]]:
    """Open a text file, compressed or not.

    Args:
        path: a name that ends in `.gz`, `.xz`, `.bz2` or `.lz4` is unpacked on the way.
        encoding: a byte-order mark is skipped in UTF-8.
        newline: as of `open`.

    Raises:
        DataError: what goes wrong while it is read inside the block, in one line.
    """
    name = _codec(encoding)
    try:
        with open_bytes(path) as raw:
            with io.TextIOWrapper(raw, encoding=name, newline=newline) as stream:
                yield stream
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{_undecodable_line(path, name)}: bytes that are not {encoding} "
            f"({error.reason}); set data.encoding, latin-1 for instance"
        ) from None
    except BROKEN as error:
        kind = compression(path)
        raise DataError(f"{path} is not a whole {kind} file: {error}; fetch it again") from None
    # After gzip's own error, which is an OSError too.
    except OSError as error:
        reason = error.strerror or error
        # Arrow's errors of damaged lz4 have no number.
        advice = "check its permissions" if error.errno else "fetch it again"
        raise DataError(f"{path} cannot be read: {reason}; {advice}") from None


def _codec(encoding: str) -> str:
    """Return Python's name of an encoding; of UTF-8, the form that skips a byte-order mark."""
    try:
        name = codecs.lookup(encoding).name
    except LookupError:
        raise DataError(f"data.encoding {encoding!r} is not known to Python; try utf-8") from None
    return "utf-8-sig" if name == "utf-8" else name


def _undecodable_line(path: Path, encoding: str) -> str:
    """Find the first line that does not decode; a decoder's own report knows no lines."""
    number = 0
    try:
        # Split at bytes: right for every encoding in which ASCII is itself, "?" for the others.
        with open_bytes(path) as raw:
            for line in raw:
                number += 1
                line.decode(encoding)
    except UnicodeDecodeError as error:
        return f"{number}:{error.start + 1}"
    except (*BROKEN, OSError):
        # Read in other pieces, a damaged archive may show itself before its text does.
        return f"{number + 1}"
    return "?"
