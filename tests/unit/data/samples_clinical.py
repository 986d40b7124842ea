"""Clinical sets: CodiEsp, brat, and MIMIC's tables, lists and annotations, all made up."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.feather as feather
from damage import BINARY, GONE, Sample, cut, latin, put, swap

sys.path.append(str(Path(__file__).parents[2] / "clinical"))
from made_up_mimic import CODES, Admission, Written, made_up, write_caml_lists, write_release

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
