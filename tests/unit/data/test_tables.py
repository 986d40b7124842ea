"""Rows out of files: values, and one clear line for each thing that can be wrong."""

from __future__ import annotations

import bz2
import gzip
import lzma
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from plant_dist.data.files.tables import Row, read_rows
from plant_dist.errors import DataError


def write(path: Path, content: str | bytes) -> Path:
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def values(path: Path, **options) -> list[dict]:
    return [dict(row.values) for row in read_rows(path, **options)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json", "A.JSONL.gz"])
def test_json_lines_with_line_numbers_and_blank_lines(tmp_path: Path, name):
    path = write(tmp_path / name, '{"id": "a", "n": 1}\n\n{"id": "b\\u2028é", "n": [2]}\r\n')
    assert list(read_rows(path)) == [
        Row(f"{path}:1", {"id": "a", "n": 1}), Row(f"{path}:3", {"id": "b\u2028é", "n": [2]}),
    ]  # fmt: skip


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("a.tsv.gz", "\t"), ("a.csv.gz", ",")])
def test_delimited_files_with_quotes_and_fields_of_many_lines(tmp_path: Path, name, mark):
    note = "x" * 300_000  # longer than the csv module's own limit
    content = f'id{mark}text\n1{mark}"two\nlines{mark} ""quoted"""\n\n2{mark}{note}\n'
    path = write(tmp_path / name, content)
    assert list(read_rows(path)) == [
        Row(f"{path}:2", {"id": "1", "text": f'two\nlines{mark} "quoted"'}),
        Row(f"{path}:5", {"id": "2", "text": note}),
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path):
    assert values(write(tmp_path / "a.csv", b"\xef\xbb\xbfid,text\n1,x\n")) == [
        {"id": "1", "text": "x"}
    ]
    assert values(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"id": 1}\n')) == [{"id": 1}]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings(tmp_path: Path, encoding):
    path = write(tmp_path / "a.csv", "id,text\n1,naïve\n".encode(encoding))
    assert values(path, encoding=encoding) == [{"id": "1", "text": "naïve"}]


def test_quotes_may_be_ordinary_characters(tmp_path: Path):
    path = write(tmp_path / "a.tsv", 'id\ttext\n1\t"Fever" of 39\n2\t"open\n')
    assert [row["text"] for row in values(path, quotes=False)] == ['"Fever" of 39', '"open']
    with pytest.raises(DataError, match=r"a\.tsv:2: .*quotes: false"):
        values(path)


def test_parquet_rows_and_class_names(tmp_path: Path):
    names = datasets.ClassLabel(names=["flu", "cold"])
    features = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(names), "one": names}
    )
    table = pa.table(
        {"text": ["a", "b"], "labels": pa.array([[1, 0], []]), "one": pa.array([0, None])}
    )
    path = tmp_path / "a.parquet"
    pq.write_table(table.cast(features.arrow_schema), path)
    assert list(read_rows(path)) == [
        Row(f"{path} row 1", {"text": "a", "labels": ["cold", "flu"], "one": "flu"}),
        Row(f"{path} row 2", {"text": "b", "labels": [], "one": None}),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl:2: not JSON: .* at column"),
        ("a.jsonl", "[1]\n", r"a\.jsonl:1: found a JSON list, expected an object"),
        ("a.jsonl", b'{"a": "x"}\n{"a": "\xff"}\n', r"a\.jsonl:2:8: bytes that are not utf-8"),
        ("a.csv", b"id,text\n1,ok\n2,\xe9t\xe9\n", r"a\.csv:3:3: .*data\.encoding"),
        ("a.csv.gz", b"id,text\n1,\xe9t\xe9\n", r"a\.csv\.gz:2:3: bytes that are not utf-8"),
        ("a.csv", "id,text\n1,a,b\n", r"a\.csv:2: found 3 fields, the header has 2"),
        ("a.csv", "id,a,a\n1,b,c\n", r"a\.csv:1: two columns are called 'a'; rename one"),
        ("a.csv", 'id,text\n1,"never closed\n', r"a\.csv:2: unexpected end of data"),
        ("a.parquet", b"PAR1 is not enough", "not a whole Parquet file"),
        ("a.xlsx", b"", r"unknown suffix; known are \.jsonl"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_line(tmp_path: Path, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        values(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_a_cut_gzip_and_an_unknown_encoding(tmp_path: Path):
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        values(tmp_path / "gone.jsonl")
    path = write(tmp_path / "a.jsonl.gz", '{"a": 1}\n' * 1000)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="not a whole gzip file"):
        values(path)
    path.write_bytes(b"plain text")
    with pytest.raises(DataError, match="not a whole gzip file"):
        values(path)
    with pytest.raises(DataError, match="'klingon' is not known to Python"):
        values(write(tmp_path / "b.csv", "a\n"), encoding="klingon")


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs Linux's /proc")
def test_a_file_that_cannot_be_read(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    # Nothing is mapped at address 0, so that reading there fails, for root too.
    path.symlink_to("/proc/self/mem")
    with pytest.raises(DataError, match=r"a\.jsonl cannot be read: Input/output error"):
        values(path)


def test_a_missing_column_names_those_there_are():
    with pytest.raises(
        DataError, match=r"f:7: no column 'body'; columns found: id, text; set data\.text_column"
    ):
        Row("f:7", {"id": 1, "text": 2}).get("body", "data.text_column")


def test_rows_are_streamed(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n' * 3 + "broken\n")
    rows = read_rows(path)
    assert [next(rows).values["a"] for _ in range(3)] == [1, 1, 1]
    with pytest.raises(DataError, match=":4:"):
        next(rows)


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [(".gz", gzip.compress), (".xz", lzma.compress), (".BZ2", bz2.compress),
     (".lz4", lambda raw: pa.compress(raw, codec="lz4", asbytes=True))],
)  # fmt: skip
def test_a_compressed_table_is_the_table(tmp_path, suffix, pack):
    path = tmp_path / f"docs.csv{suffix}"
    path.write_bytes(pack("id,text\n1,ä\n".encode()))
    assert [dict(row.values) for row in read_rows(path)] == [{"id": "1", "text": "ä"}]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="fetch it again"):
        list(read_rows(path))
