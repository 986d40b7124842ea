"""Tables and lists of labels that the user names the columns of."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from damage import BINARY, GONE, Sample, csv_rows, cut, files, jsonl, latin, put, swap

ROWS = [("fever, é", ["a b", "c"]), ("cough", []), ("pain; x", ["c"])]
TABLE = [
    {"id": str(n), "text": text, "labels": labels, "split": "train"}
    for n, (text, labels) in enumerate(ROWS)
]
FLAT = "id,text,labels,split\n" + "".join(
    f'{n},"{text}","{";".join(labels)}",train\n' for n, (text, labels) in enumerate(ROWS)
)


def write_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(TABLE), folder / "docs.parquet")


SAMPLES = {
    "generic jsonl": Sample(
        files(docs__jsonl=jsonl(TABLE)),
        {"path": "{}/docs.jsonl"},
        {
            "truncated": ("docs.jsonl", cut(0.6)),
            "binary": ("docs.jsonl", BINARY),
            "encoding": ("docs.jsonl", latin),
            "missing column": ("docs.jsonl", swap(b'"text"', b'"t"')),
            "label no name": ("docs.jsonl", swap(b'["c"]', b"[1.5]")),
            "empty": ("docs.jsonl", cut(0)),
            "id twice": ("docs.jsonl", swap(b'"id": "1"', b'"id": "0"')),
            "gone": ("docs.jsonl", GONE),
        },
    ),
    "generic jsonl.gz": Sample(
        lambda folder: put(folder, {"docs.jsonl.gz": jsonl(TABLE)}),
        {"path": "{}/docs.jsonl.gz"},
        {"truncated": ("docs.jsonl.gz", cut(0.9)), "no gzip": ("docs.jsonl.gz", BINARY)},
    ),
    "generic csv": Sample(
        files(docs__csv=FLAT),
        {"path": "{}/docs.csv"},
        {
            "truncated in quotes": ("docs.csv", lambda raw: raw[: raw.index(b"pain") + 2]),
            "binary": ("docs.csv", BINARY),
            "encoding": ("docs.csv", latin),
            "missing column": ("docs.csv", swap(b"text", b"body")),
            "a field too many": ("docs.csv", swap(b"train", b"train,x")),
            "a field too few": ("docs.csv", swap(b'"",train', b"train")),
        },
        lambda folder: csv_rows(folder, "docs.csv", ","),
    ),
    "generic parquet": Sample(
        write_parquet,
        {"path": "{}/docs.parquet"},
        {"truncated": ("docs.parquet", cut()), "binary": ("docs.parquet", BINARY)},
    ),
    "generic labels": Sample(
        files(docs__jsonl=jsonl(TABLE), labels__csv="id,text\na b,é one\nc,two\n"),
        {"path": "{}/docs.jsonl", "labels_path": "{}/labels.csv"},
        {
            "missing column": ("labels.csv", swap(b"id,", b"code,")),
            "encoding": ("labels.csv", latin),
            "id twice": ("labels.csv", swap(b"c,", b"a b,")),
            "binary": ("labels.csv", BINARY),
            "a field too few": ("labels.csv", swap(b"c,two", b"c")),
        },
    ),
}
