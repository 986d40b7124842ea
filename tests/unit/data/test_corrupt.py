"""Every reader on broken files: documents or one line, never a traceback, never a silent loss.

A sample of each format is small, valid and independent of our writers. `broken` names one kind of
damage each that must be refused; the seeded mutator below finds the kinds that nobody has named.
"""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from scipy import sparse

sys.path.append(str(Path(__file__).parents[2] / "clinical"))
from made_up_mimic import CODES, Admission, Written, made_up, write_caml_lists, write_release

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus, readers
from plant_dist.data.gather import gather
from plant_dist.data.vocabulary import LabelSpace
from plant_dist.errors import PlantError

Edit = Callable[[bytes], bytes]
ROWS = [("fever, é", ["a b", "c"]), ("cough", []), ("pain; x", ["c"])]


@dataclass
class Sample:
    """A valid corpus.

    Attributes:
        settings: of the `data` section; "{}" stands for the folder.
        broken: what a kind of damage does to a file; each must be refused, naming `named` where it
            is given.
        units: the documents that a folder holds, counted without the reader; None where damage may
            change what a document is.
    """

    write: Callable[[Path], None]
    settings: dict[str, Any]
    broken: dict[str, tuple[str, Edit | None]]
    units: Callable[[Path], int] | None = None
    files: tuple[str, ...] = field(default=())


def put(folder: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = content if isinstance(content, bytes) else content.encode()
        path.write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)


def files(**named: str | bytes) -> Callable[[Path], None]:
    return lambda folder: put(folder, {n.replace("__", "."): text for n, text in named.items()})


def lines(*names: str) -> Callable[[Path], int]:
    """Lines of text files: only a line feed ends one, and the last need not be ended."""

    def count(folder: Path) -> int:
        found = 0
        for name in names:
            raw = (folder / name).read_bytes()
            found += raw.count(b"\n") + (bool(raw) and not raw.endswith(b"\n"))
        return found

    return count


def swap(old: bytes, new: bytes) -> Edit:
    def edit(raw: bytes) -> bytes:
        assert old in raw
        return raw.replace(old, new, 1)

    return edit


def latin(raw: bytes) -> bytes:
    return raw.replace("é".encode(), b"\xe9").replace("ñ".encode(), b"\xf1")


def cut(share: float = 0.5) -> Edit:
    return lambda raw: raw[: int(share * len(raw))]


def without_last_line(raw: bytes) -> bytes:
    return b"".join(raw.splitlines(keepends=True)[:-1])


BINARY: Edit = lambda raw: b"\x7fELF\x02\x01\x00\x00\xff\xfe\x9c" * 9  # noqa: E731
GONE = None


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def csv_rows(folder: Path, name: str, mark: str) -> int:
    with (folder / name).open(encoding="utf-8", newline="") as stream:
        return sum(bool(row) for row in csv.reader(stream, delimiter=mark)) - 1


TABLE = [
    {"id": str(n), "text": text, "labels": labels, "split": "train"}
    for n, (text, labels) in enumerate(ROWS)
]
FLAT = "id,text,labels,split\n" + "".join(
    f'{n},"{text}","{";".join(labels)}",train\n' for n, (text, labels) in enumerate(ROWS)
)


def write_parquet(folder: Path) -> None:
    pq.write_table(pa.Table.from_pylist(TABLE), folder / "docs.parquet")


def write_xmc_lines(folder: Path) -> None:
    put(folder, {"trn_X.txt": "fever é\ncough\npain\n", "trn_X_Y.txt": "3 2\n0:1 1:1\n\n1:1\n",
                 "Y.txt": "é one\ntwo\n", "filter_labels_train.txt": "0 1\n2 0\n"})  # fmt: skip


def write_pecos_matrix(folder: Path) -> None:
    put(folder, {"X.trn.txt": "fever é\ncough\npain\n", "output-items.txt": "é one\ntwo\n"})
    matrix = sparse.csr_array(np.array([[1, 1], [0, 0], [0, 1]], np.float32))
    sparse.save_npz(folder / "Y.trn.npz", matrix)


def npz_of_width(width: int) -> Edit:
    def edit(raw: bytes) -> bytes:
        import io

        stream = io.BytesIO()
        sparse.save_npz(stream, sparse.csr_array(np.ones((3, width), np.float32)))
        return stream.getvalue()

    return edit


SKOS = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
<http://x.org/1> a skos:Concept ; skos:prefLabel "fièvre"@fr .
<http://x.org/2> a skos:Concept ; skos:prefLabel "toux"@fr ; skos:broader <http://x.org/1> .
"""
CODIESP = {
    **{f"{split}/text_files/{split}1.txt": "Niña con fiebre alta\n"
       for split in ("train", "dev", "test")},
    **{f"{split}/{split}{letter}.tsv": f"{split}1\tr50.9\n" if letter == "D" else ""
       for split in ("train", "dev", "test") for letter in "DP"},
    **{f"{split}/{split}X.tsv": f"{split}1\tDIAGNOSTICO\tr50.9\tfiebre\t9 15\n"
       for split in ("train", "dev", "test")},
}  # fmt: skip
BRAT = {
    "train/one.txt": "Niña con fiebre alta\n",
    "train/one.ann": "T1\tSINTOMA 9 15\tfiebre\n#1\tAnnotatorNotes T1\tR50.9\n",
}
PACKAGES = """Package: alpha
Source: greek (1.0)
Description: first letter
 It is the first é of them all.
Tag: role::program, use::learning
Depends: libc6 (>= 2), beta | gamma

Package: beta
Description: second letter
 It comes after alpha.
Tag: role::program
"""
# Offsets, pointers and glosses as wndb(5) has them.
NOUNS = """  1 licence é
00000001 03 n 01 entity 0 000 | that which is
00000002 03 n 01 thing 0 001 @ 00000001 n 0000 | a separate entity
00000003 03 n 02 tree 0 plant 0 001 @ 00000002 n 0000 | a tall plant
"""


def write_mimic(release: int) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        admissions = made_up(14, seed=1, version=9 if release == 3 else 10)
        write_release(folder, admissions, release, packed=False)
        hadms = [one.hadm for one in admissions]
        by_split = {"train": hadms[:8], "dev": hadms[8:10], "test": hadms[10:]}
        write_caml_lists(folder / "lists", "full", by_split)

    return write


def write_lists(folder: Path) -> None:
    """MIMIC-IV with a Feather table of splits, and KEPT's JSON for an experiment of its own."""
    write_mimic(4)(folder)
    names = [folder / f"lists/{split}_full_hadm_ids.csv" for split in ("train", "dev", "test")]
    hadms = [int(line) for name in names for line in name.read_text().split()]
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * (len(hadms) - 10)
    feather.write_feather(pa.table({"_id": hadms, "split": splits}), folder / "splits.feather")
    chosen = {"train": hadms[:4], "dev": hadms[8:9], "test": hadms[10:12]}
    for split, some in chosen.items():
        content = [{"hadm_id": one, "LABELS": "I10;E11.9"} for one in some]
        put(folder, {f"rare/mimic3-50l_{split}.json": json.dumps(content)})


def write_mdace(folder: Path) -> None:
    note = Written(31, False, "2110-01-01 00:00:00", "Sepsis é, severe\n")
    code = next(place for place, row in enumerate(CODES) if row[3] == "038.9")
    admissions = [*made_up(14, seed=1), Admission(99, 42, [note], [code])]
    write_release(folder, admissions, packed=False)
    spans = [{"begin": 0, "end": 6, "code": "038.9", "code_system": "ICD-9-CM", "type": "human"}]
    content = {"hadm_id": 42, "notes": [{"note_id": 31, "annotations": spans}]}
    put(folder, {"mdace/42.json": json.dumps(content)})


NOTES, DIAGNOSES = "NOTEEVENTS.csv", "DIAGNOSES_ICD.csv"
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
    "attentionxml": Sample(
        files(train_raw_texts__txt="fever é\ncough\npain\n", train_labels__txt="a b\n\nc\n"),
        {"reader": "attentionxml", "path": "{}"},
        {
            "truncated texts": ("train_raw_texts.txt", without_last_line),
            "truncated labels": ("train_labels.txt", without_last_line),
            "encoding": ("train_raw_texts.txt", latin),
            "binary": ("train_labels.txt", BINARY),
            "gone": ("train_labels.txt", GONE),
        },
        lines("train_raw_texts.txt"),
    ),
    "xmc json": Sample(
        files(
            trn__json=jsonl(
                [{"title": "fever é", "target_ind": [0, 1]}, {"title": "x", "target_ind": []}]
            ),
            lbl__json=jsonl([{"title": "é one"}, {"title": "two"}]),
        ),
        {"reader": "xmc", "path": "{}"},
        {
            "truncated": ("trn.json", cut(0.7)),
            "binary": ("trn.json", BINARY),
            "encoding": ("trn.json", latin),
            "missing column": ("trn.json", swap(b"target_ind", b"y")),
            "out of range": ("trn.json", swap(b"[0, 1]", b"[0, 2]")),
            "negative": ("trn.json", swap(b"[0, 1]", b"[-1]")),
            "no number": ("trn.json", swap(b"[0, 1]", b'["0"]')),
            "empty line": ("trn.json", swap(b"\n", b"\n\n")),
            "labels gone": ("lbl.json", GONE),
            "labels truncated": ("lbl.json", cut(0.6)),
        },
        lines("trn.json"),
    ),
    "xmc lines": Sample(
        write_xmc_lines,
        {"reader": "xmc", "path": "{}"},
        {
            "truncated texts": ("trn_X.txt", without_last_line),
            "truncated matrix": ("trn_X_Y.txt", without_last_line),
            "wrong count": ("trn_X_Y.txt", swap(b"3 2", b"4 2")),
            "no header": ("trn_X_Y.txt", swap(b"3 2\n", b"")),
            "out of range": ("trn_X_Y.txt", swap(b"0:1", b"2:1")),
            "negative": ("trn_X_Y.txt", swap(b"0:1", b"-1:1")),
            "no value": ("trn_X_Y.txt", swap(b"0:1", b"0:x")),
            "twice": ("trn_X_Y.txt", swap(b"0:1", b"1:1")),
            "filter out of range": ("filter_labels_train.txt", swap(b"2 0", b"3 0")),
            "filter label": ("filter_labels_train.txt", swap(b"0 1", b"0 2")),
            "filter shape": ("filter_labels_train.txt", swap(b"0 1", b"0 1 1")),
            "label names": ("Y.txt", without_last_line),
            "encoding": ("trn_X.txt", latin),
        },
        lines("trn_X.txt"),
    ),
    "pecos matrix": Sample(
        write_pecos_matrix,
        {"reader": "pecos", "path": "{}"},
        {
            "truncated": ("X.trn.txt", without_last_line),
            "encoding": ("X.trn.txt", latin),
            "binary": ("Y.trn.npz", BINARY),
            "half a matrix": ("Y.trn.npz", cut()),
            "width": ("Y.trn.npz", npz_of_width(3)),
            "gone": ("Y.trn.npz", GONE),
            "label names": ("output-items.txt", without_last_line),
        },
        lines("X.trn.txt"),
    ),
    "pecos lines": Sample(
        files(train__txt="0,1\tfever é\n\tcough\n1::0.5\tpain\n", names__txt="é one\ntwo\n"),
        {"reader": "pecos", "train_path": "{}/train.txt", "labels_path": "{}/names.txt"},
        {
            "missing column": ("train.txt", swap(b"\tcough", b"cough")),
            "encoding": ("train.txt", latin),
            "out of range": ("train.txt", swap(b"0,1", b"0,2")),
            "negative": ("train.txt", swap(b"0,1", b"-1")),
            "other digits": ("train.txt", swap(b"0,1", "٠".encode())),
            "binary": ("train.txt", BINARY),
            "weight": ("train.txt", swap(b"0.5", b"inf")),
            "names gone": ("names.txt", GONE),
        },
        lines("train.txt"),
    ),
    "libmultilabel": Sample(
        files(train__txt="0\ta b\tfever é\n1\t\tcough\n2\tc\tpain\n"),
        {"reader": "libmultilabel", "path": "{}"},
        {
            "missing column": ("train.txt", swap(b"1\t\t", b"1\t")),
            "encoding": ("train.txt", latin),
            "tab in text": ("train.txt", swap(b"cough", b"cou\tgh")),
            "binary": ("train.txt", BINARY),
            "id twice": ("train.txt", swap(b"2\tc", b"1\tc")),
            "empty": ("train.txt", cut(0)),
        },
        lines("train.txt"),
    ),
    "fasttext": Sample(
        files(train__txt="__label__a __label__b fever é\ncough\n__label__c pain\n"),
        {"reader": "fasttext", "path": "{}"},
        {
            "no name": ("train.txt", swap(b"__label__c", b"__label__")),
            "encoding": ("train.txt", latin),
            "binary": ("train.txt", BINARY),
            "empty": ("train.txt", cut(0)),
        },
        lines("train.txt"),
    ),
    "annif tsv": Sample(
        files(
            docs__tsv="fever é\t<http://x.org/1> <http://x.org/2>\ncough\t\npain\t<http://x.org/1>\n",
            vocabulary__tsv="<http://x.org/1>\té one\n<http://x.org/2>\ttwo\n",
        ),
        {"reader": "annif", "train_path": "{}/docs.tsv", "labels_path": "{}/vocabulary.tsv"},
        {
            "missing column": ("docs.tsv", swap(b"cough\t", b"cough")),
            "encoding": ("docs.tsv", latin),
            "no uri": ("docs.tsv", swap(b"<http://x.org/2>", b"<>")),
            "binary": ("docs.tsv", BINARY),
            "twice": ("vocabulary.tsv", swap(b"x.org/2", b"x.org/1")),
            "gone": ("vocabulary.tsv", GONE),
        },
        lines("docs.tsv"),
    ),
    "annif csv": Sample(
        files(docs__csv="text,subject_uris\nfever é,<http://x.org/1>\ncough,\n"),
        {"reader": "annif", "train_path": "{}/docs.csv"},
        {
            "missing column": ("docs.csv", swap(b"subject_uris", b"uris")),
            "encoding": ("docs.csv", latin),
            "a field too few": ("docs.csv", swap(b"cough,", b"cough")),
            "binary": ("docs.csv", BINARY),
        },
        lambda folder: csv_rows(folder, "docs.csv", ","),
    ),
    "annif jsonl": Sample(
        files(docs__jsonl=jsonl([{"text": "fever é", "subjects": [{"uri": "http://x.org/1"}]}])),
        {"reader": "annif", "train_path": "{}/docs.jsonl"},
        {
            "truncated": ("docs.jsonl", cut(0.8)),
            "encoding": ("docs.jsonl", latin),
            "missing column": ("docs.jsonl", swap(b'"text"', b'"t"')),
            "binary": ("docs.jsonl", BINARY),
            "no subject": ("docs.jsonl", swap(b"}]", b"}, 1]")),
            "neither uri nor label": ("docs.jsonl", swap(b'"uri"', b'"u"')),
        },
    ),
    "annif folder": Sample(
        lambda folder: put(
            folder,
            {
                "full/a.txt": "fever é\n",
                "full/a.tsv": "<http://x.org/1>\tone\n",
                "full/b.json": json.dumps({"text": "x", "subjects": []}),
                "full/c.txt": "pain",
                "full/c.key": "toux\n",
                "v.ttl": SKOS,
            },
        ),
        {
            "reader": "annif",
            "train_path": "{}/full",
            "labels_path": "{}/v.ttl",
            "reader_options": {"language": "fr"},
        },
        {
            "encoding": ("full/a.txt", latin),
            "binary": ("full/b.json", BINARY),
            "uri": ("full/a.tsv", swap(b"x.org/1", b"x org")),
            "truncated": ("full/b.json", cut()),
            "vocabulary truncated": ("v.ttl", cut(0.7)),
            "vocabulary binary": ("v.ttl", BINARY),
            "vocabulary gone": ("v.ttl", GONE),
        },
    ),
    "codiesp": Sample(
        lambda folder: put(folder, CODIESP),
        {"reader": "codiesp", "path": "{}"},
        {
            "text gone": ("dev/text_files/dev1.txt", GONE),
            "encoding": ("test/text_files/test1.txt", latin),
            "missing column": ("train/trainX.tsv", swap(b"\t9 15", b"")),
            "out of range": ("train/trainX.tsv", swap(b"9 15", b"9 99")),
            "no positions": ("train/trainX.tsv", swap(b"9 15", b"nine")),
            "type": ("train/trainX.tsv", swap(b"DIAGNOSTICO", b"OTRO")),
            "empty code": ("dev/devD.tsv", swap(b"r50.9", b" ")),
            "binary": ("dev/devD.tsv", BINARY),
            "table gone": ("test/testD.tsv", GONE),
        },
    ),
    "brat": Sample(
        lambda folder: put(folder, BRAT),
        {"reader": "brat", "path": "{}"},
        {
            "text gone": ("train/one.txt", GONE),
            "encoding": ("train/one.txt", latin),
            "out of range": ("train/one.ann", swap(b"9 15", b"9 99")),
            "missing column": ("train/one.ann", swap(b"\tfiebre", b"")),
            "no such span": ("train/one.ann", swap(b"Notes T1", b"Notes T7")),
            "binary": ("train/one.ann", BINARY),
            "other text": ("train/one.txt", swap(b"fiebre", b"dolor ")),
        },
    ),
    "debian": Sample(
        files(Packages=PACKAGES),
        {"reader": "debian", "path": "{}/Packages"},
        {
            "no field": ("Packages", swap(b"Package: beta\n", b"")),
            "encoding": ("Packages", latin),
            "no colon": ("Packages", swap(b"Source: ", b"Source ")),
            "binary": ("Packages", BINARY),
            "no description": ("Packages", swap(b"Description: second", b"Descr: second")),
        },
    ),
    "wordnet": Sample(
        files(data__noun=NOUNS),
        {"reader": "wordnet", "path": "{}"},
        {
            "truncated": ("data.noun", cut(0.8)),
            "encoding": ("data.noun", latin),
            "wrong count": ("data.noun", swap(b"03 n 02 tree", b"03 n 0f tree")),
            "no gloss": ("data.noun", swap(b" | that", b" that")),
            "binary": ("data.noun", BINARY),
            "parent gone": ("data.noun", swap(b"@ 00000001", b"@ 00000009")),
        },
    ),
    "mimic iii": Sample(
        write_mimic(3),
        {"reader": "mimic", "path": "{}", "reader_options": {"splits": "lists"}},
        {
            "truncated": (NOTES, lambda raw: raw[: raw.rindex(b'"')]),
            "binary": (NOTES, BINARY),
            "missing column": (NOTES, swap(b"HADM_ID", b"ADMISSION")),
            "no number": (
                DIAGNOSES,
                lambda raw: re.sub(rb"\n(\d+),(\d+),\d+", rb"\n\1,\2,x", raw, count=1),
            ),
            "codes missing column": (DIAGNOSES, swap(b"ICD9_CODE", b"CODE")),
            "codes gone": (DIAGNOSES, GONE),
            "list no number": ("lists/train_full_hadm_ids.csv", lambda raw: b"abc\n" + raw),
            "list gone": ("lists/test_full_hadm_ids.csv", GONE),
            "list binary": ("lists/dev_full_hadm_ids.csv", BINARY),
        },
    ),
    "mimic iv": Sample(
        write_mimic(4),
        {"reader": "mimic", "path": "{}", "reader_options": {"icd": "10"}},
        {
            "truncated": ("note/discharge.csv", lambda raw: raw[: raw.rindex(b'"')]),
            "missing column": ("note/discharge.csv", swap(b"note_seq", b"seq")),
            "version": ("hosp/diagnoses_icd.csv", lambda raw: re.sub(rb",10\n", b",11\n", raw)),
            "binary": ("hosp/procedures_icd.csv", BINARY),
        },
    ),
    "mimic lists": Sample(
        write_lists,
        {
            "reader": "mimic",
            "path": "{}",
            "reader_options": {
                "icd": "10",
                "splits": "splits.feather",
                "label_set": "rare-50",
                "subset": "rare",
            },
        },
        {
            "truncated table": ("splits.feather", cut()),
            "binary table": ("splits.feather", BINARY),
            "table gone": ("splits.feather", GONE),
            "truncated": ("rare/mimic3-50l_train.json", cut(0.8)),
            "missing column": ("rare/mimic3-50l_dev.json", swap(b"hadm_id", b"id")),
            "no labels": ("rare/mimic3-50l_test.json", swap(b'"I10;E11.9"', b"[3]")),
            "gone": ("rare/mimic3-50l_test.json", GONE),
        },
    ),
    "mdace": Sample(
        write_mdace,
        {"reader": "mdace", "path": "{}", "reader_options": {"annotations": "mdace"}},
        {
            "truncated": ("mdace/42.json", cut(0.8)),
            "binary": ("mdace/42.json", BINARY),
            "missing column": ("mdace/42.json", swap(b"hadm_id", b"id")),
            "out of range": ("mdace/42.json", swap(b'"end": 6', b'"end": 99')),
            "no number": ("mdace/42.json", swap(b'"begin": 0', b'"begin": "x"')),
        },
    ),
}


def settings_of(sample: Sample, folder: Path) -> DataConfig:
    values = {
        key: value.format(folder) if isinstance(value, str) else value
        for key, value in sample.settings.items()
    }
    # Texts that lose all their words are no damage of a format.
    return DataConfig(**values, empty_text="keep")


def outcome(sample: Sample, folder: Path) -> tuple[str | None, int]:
    """What is said of a folder, and how many documents it gives; other errors pass through."""
    try:
        corpus = open_corpus(settings_of(sample, folder))
        LabelSpace.create(corpus.labels())
        gathered = gather(corpus, folder / "gathered.arrow", keep_empty=True)
        corpus.fingerprint()
        corpus.describe()
    except PlantError as error:
        return str(error), 0
    finally:
        (folder / "gathered.arrow").unlink(missing_ok=True)
    return None, len(gathered.splits)


def assert_one_line(message: str, folder: Path) -> None:
    assert "\n" not in message
    # Whoever reads it can find the file, or the setting that names it.
    assert str(folder) in message or "data.reader_options" in message, message
    assert len(message) < 600


def test_every_reader_has_a_sample() -> None:
    tried = {sample.settings.get("reader", "generic") for sample in SAMPLES.values()}
    # This one reads a Python package, and no file of the user's.
    assert tried == set(readers()) - {"icd10cm"}


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample_is_read(name: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    sample.write(tmp_path)
    message, documents = outcome(sample, tmp_path)
    assert message is None
    assert documents == (sample.units(tmp_path) if sample.units else documents) > 0


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, sample in SAMPLES.items() for kind in sample.broken]
)
def test_damage_is_refused_in_one_line(name: str, kind: str, tmp_path: Path) -> None:
    sample = SAMPLES[name]
    sample.write(tmp_path)
    file, edit = sample.broken[kind]
    path = tmp_path / file
    if edit is None:
        path.unlink()
    else:
        raw = path.read_bytes()
        path.write_bytes(edit(raw))
        assert path.read_bytes() != raw
    message, _ = outcome(sample, tmp_path)
    assert message is not None
    assert_one_line(message, tmp_path)


NUMBERS = (b"99999999999999999999", b"-1", b"1e5", "٣".encode(), b"NaN", b"", b"0x1", b"1_0")


def mangle(raw: bytes, chance: random.Random) -> bytes:
    """One or two of the things that happen to files."""
    place = chance.randrange(len(raw) + 1)
    size = chance.randrange(1, 9)
    numbers = list(re.finditer(rb"\d+", raw))
    rows = raw.splitlines(keepends=True)
    kinds: list[Callable[[], bytes]] = [
        lambda: raw[:place],
        lambda: raw[:place] + raw[place + size :],
        lambda: raw[:place] + chance.randbytes(size) + raw[place:],
        lambda: raw[:place] + b"\x00\xff\xfe" + raw[place:],
        lambda: (
            raw[:place] + chance.choice([b"\n", b"\r", b"\t", b",", b'"', b" ", b"{"]) + raw[place:]
        ),
        lambda: latin(raw),
        lambda: raw.decode(errors="replace").encode("utf-16"),
        lambda: b"",
    ]
    if rows:
        at = chance.randrange(len(rows))
        kinds += [
            lambda: b"".join(rows[:at] + rows[at + 1 :]),
            lambda: b"".join(rows[: at + 1] + rows[at:]),
            lambda: b"".join(chance.sample(rows, len(rows))),
            lambda: b"".join([*rows[:at], rows[at].replace(b"\t", b"", 1), *rows[at + 1 :]]),
        ]
    if numbers:
        found = chance.choice(numbers)
        kinds += [lambda: raw[: found.start()] + chance.choice(NUMBERS) + raw[found.end() :]] * 3
    return chance.choice(kinds)()


@pytest.mark.parametrize("name", SAMPLES)
def test_whatever_happens_to_a_file_is_said_in_one_line(name: str, tmp_path: Path) -> None:
    sample, chance = SAMPLES[name], random.Random(name)
    refused = 0
    sample.write(tmp_path)
    whole = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*")) if path.is_file()}
    for _ in range(60):
        path = chance.choice(list(whole))
        raw = whole[path]
        for _ in range(chance.choice((1, 1, 2))):
            raw = mangle(raw, chance)
        path.write_bytes(raw)
        try:
            message, documents = outcome(sample, tmp_path)
            if message is not None:
                assert_one_line(message, tmp_path)
                refused += 1
            elif sample.units is not None:
                assert documents == sample.units(tmp_path)
        except BaseException as error:
            error.add_note(f"{path.relative_to(tmp_path)}: {raw[:2000]!r}")
            raise
        finally:
            path.write_bytes(whole[path])
    # A mutator that breaks nothing proves nothing.
    assert refused >= 5
