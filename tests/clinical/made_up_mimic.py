"""Tables in the shape of MIMIC-III and MIMIC-IV, all of it made up, with a known answer.

`made_up(...)` invents patients, admissions, notes and codes; `write_release` writes them as the
tables of a release with everything that real tables do to a reader: rows in no order, addenda far
from their summaries, notes of many lines with quotes and commas, other kinds of notes, NULLs,
leading zeros, E- and V-codes, procedures, repeated rows, Windows line ends, gzip. What a reader
must make of it stays in `Admission`.
"""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

# (kind, version, as the tables hold it, as a coder writes it, title)
CODES = (
    ("diagnoses", 9, "0389", "038.9", 'Septicemia, "unspecified"'),
    ("diagnoses", 9, "042", "042", "Human immunodeficiency virus [HIV] disease"),
    ("diagnoses", 9, "4280", "428.0", "Congestive heart failure, unspecified"),
    ("diagnoses", 9, "25000", "250.00", "Diabetes mellitus without complication"),
    ("diagnoses", 9, "V3000", "V30.00", "Single liveborn, born in hospital"),
    ("diagnoses", 9, "E8497", "E849.7", "Accidents in residential institution"),
    ("diagnoses", 9, "E878", "E878", "Surgical operation as cause"),
    ("procedures", 9, "0066", "00.66", "Coronary angioplasty"),
    ("procedures", 9, "9904", "99.04", "Transfusion of packed cells"),
    ("procedures", 9, "640", "64.0", "Circumcision"),
    ("diagnoses", 10, "E119", "E11.9", "Type 2 diabetes mellitus without complications"),
    ("diagnoses", 10, "I10", "I10", "Essential (primary) hypertension"),
    ("diagnoses", 10, "Z7901", "Z79.01", "Long term use of anticoagulants"),
    ("procedures", 10, "02100Z9", "02100Z9", "Bypass coronary artery"),
)
WORDS = (
    "patient", "was", "seen", "with", "pain", "and", "no", "fever", "given", "250mg", "twice",
    "daily", "12", "at", "home", "follow", "up", "in", "clinic", "café", "naïve", "µg",
)  # fmt: skip


@dataclass
class Written:
    """A note: its number in the table, whether it is an addendum, its time, its text."""

    number: int
    addendum: bool
    time: str
    text: str


@dataclass
class Admission:
    """An admission as its reader must see it.

    codes: indices into `CODES`, with repetitions.
    """

    subject: int
    hadm: int
    notes: list[Written] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)

    @property
    def text(self) -> str:
        ordered = sorted(self.notes, key=lambda one: (one.addendum, one.time, one.number))
        return "\n".join(one.text for one in ordered)

    def labels(self, version: int = 9, kinds: Sequence[str] = ("diagnoses", "procedures")):
        rows = (CODES[code] for code in self.codes)
        return tuple(sorted({row[3] for row in rows if row[1] == version and row[0] in kinds}))


def made_up(count: int, seed: int = 0, version: int = 9) -> list[Admission]:
    """Invent admissions, one or two a patient; the first has no code, the second no summary."""
    random = np.random.default_rng(seed)
    numbers = iter(random.permutation(20 * count) + 1)
    usable = [place for place, row in enumerate(CODES) if row[1] == version]
    admissions = []
    for place in range(count):
        one = Admission(subject=1 + place // 2, hadm=100_000 + int(random.integers(10**6)) * 7)
        one.codes = [int(code) for code in random.choice(usable, random.integers(1, 6))]
        for number in range(int(random.integers(1, 4))):
            # Later notes may be earlier ones' addenda, and the table's numbers know no order.
            one.notes.append(Written(int(next(numbers)), number > 0, _time(random), _text(random)))
        admissions.append(one)
    admissions[0].codes, admissions[1].notes = [], []
    return admissions


def _time(random: np.random.Generator) -> str:
    return f"21{random.integers(10, 90)}-0{random.integers(1, 9)}-1{random.integers(10)} 00:00:00"


def _text(random: np.random.Generator) -> str:
    words = " ".join(str(word) for word in random.choice(WORDS, int(random.integers(5, 40))))
    return f' \nAdmission Date:  [**2118-6-2**]\n\n"{words}", he said; 50%,\n  ___ {words}\n'


def write_release(
    folder: Path,
    admissions: Sequence[Admission],
    release: int = 3,
    packed: bool = True,
    line_end: str = "\n",
    seed: int = 0,
) -> Path:
    """Write the tables of a release, with rows that a reader must leave out among the others."""
    random = np.random.default_rng(seed)
    make = Release3(admissions) if release == 3 else Release4(admissions)
    for name, (header, rows) in make.tables().items():
        path = folder / f"{name}.csv{'.gz' if packed else ''}"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Repeated rows, and no order at all.
        rows = [*rows, *rows[:2]]
        rows = [rows[place] for place in random.permutation(len(rows))]
        path.write_bytes(_packed(_csv(header, rows, line_end), packed))
    return folder


class Release3:
    """MIMIC-III v1.4: names in capitals, a number in every row, notes of all kinds together."""

    def __init__(self, admissions: Sequence[Admission]) -> None:
        self._admissions = admissions

    def tables(self) -> dict[str, tuple[list[str], list[list[object]]]]:
        codes = {
            kind: [[n, a.subject, a.hadm, n, code] for n, a, code in self._codes(kind)]
            for kind in ("diagnoses", "procedures")
        }
        # Real tables hold codes that nobody filled in.
        codes["diagnoses"].append([999, 1, self._admissions[-1].hadm, "", ""])
        header = ["ROW_ID", "SUBJECT_ID", "HADM_ID", "SEQ_NUM", "ICD9_CODE"]
        return {
            "NOTEEVENTS": (NOTES_3, [*self._notes(), *self._other_notes()]),
            "DIAGNOSES_ICD": (header, codes["diagnoses"]),
            "PROCEDURES_ICD": (header, codes["procedures"]),
            **{
                f"D_ICD_{kind.upper()}": (
                    ["ROW_ID", "ICD9_CODE", "SHORT_TITLE", "LONG_TITLE"],
                    [[n, row[2], row[4][:8], row[4]] for n, row in enumerate(CODES)
                     if row[:2] == (kind, 9)],
                )
                for kind in ("diagnoses", "procedures")
            },
        }  # fmt: skip

    def _codes(self, kind: str) -> Iterator[tuple[int, Admission, str]]:
        for one in self._admissions:
            for number, code in enumerate(one.codes):
                if CODES[code][:2] == (kind, 9):
                    yield number, one, CODES[code][2]

    def _notes(self) -> Iterator[list[object]]:
        for one in self._admissions:
            for note in one.notes:
                kind = "Addendum" if note.addendum else "Report"
                yield [note.number, one.subject, one.hadm, note.time[:10], "", "",
                       "Discharge summary", kind, "", "", note.text]  # fmt: skip

    def _other_notes(self) -> Iterator[list[object]]:
        last = self._admissions[-1]
        wrong = "must not be read"
        for number, (hadm, category, kind, error) in enumerate((
            (last.hadm, "Nursing", "Report", ""), ("", "Radiology", "CHEST", ""),
            (last.hadm, "Discharge summary", "Report", "1"),
            ("", "Discharge summary", "Report", ""),
        )):  # fmt: skip
            yield [10**7 + number, last.subject, hadm, "2118-06-02", "2118-06-02 13:00:00",
                   "2118-06-02 13:05:00", category, kind, "17", error, wrong]  # fmt: skip


NOTES_3 = ["ROW_ID", "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME", "CATEGORY",
           "DESCRIPTION", "CGID", "ISERROR", "TEXT"]  # fmt: skip
NOTES_4 = ["note_id", "subject_id", "hadm_id", "note_type", "note_seq", "charttime", "storetime",
           "text"]  # fmt: skip


class Release4:
    """MIMIC-IV 2.2: small letters, folders, a version beside each code."""

    def __init__(self, admissions: Sequence[Admission]) -> None:
        self._admissions = admissions

    def tables(self) -> dict[str, tuple[list[str], list[list[object]]]]:
        header = ["subject_id", "hadm_id", "seq_num", "icd_code", "icd_version"]
        found: dict[str, tuple[list[str], list[list[object]]]] = {
            "note/discharge": (NOTES_4, list(self._notes()))
        }
        for kind in ("diagnoses", "procedures"):
            dated = kind == "procedures"
            columns = header[:3] + ["chartdate"] * dated + header[3:]
            found[f"hosp/{kind}_icd"] = (columns, list(self._codes(kind, dated)))
            found[f"hosp/d_icd_{kind}"] = (
                ["icd_code", "icd_version", "long_title"],
                [[row[2], row[1], row[4]] for row in CODES if row[0] == kind],
            )
        return found

    def _codes(self, kind: str, dated: bool) -> Iterator[list[object]]:
        for one in self._admissions:
            for number, code in enumerate(one.codes):
                row = CODES[code]
                if row[0] == kind:
                    date = ["2150-01-01"] * dated
                    yield [one.subject, one.hadm, number, *date, row[2], row[1]]

    def _notes(self) -> Iterator[list[object]]:
        for one in self._admissions:
            for note in one.notes:
                kind = "AD" if note.addendum else "DS"
                yield [f"{one.subject}-{kind}-{note.number}", one.subject, one.hadm, kind,
                       note.number, note.time, note.time, note.text]  # fmt: skip


def _csv(header: Iterable[str], rows: Iterable[Sequence[object]], line_end: str) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(header)
    # PhysioNet quotes text and nothing else; NULL is nothing between commas.
    stream.writelines(
        ",".join('"' + cell.replace('"', '""') + '"' if isinstance(cell, str) and cell
                 else str(cell) for cell in row) + "\n"
        for row in rows
    )  # fmt: skip
    # As a program does that turns a whole file's line ends: those inside notes as well.
    return stream.getvalue().replace("\n", line_end).encode()


def _packed(content: bytes, packed: bool) -> bytes:
    return gzip.compress(content, 1) if packed else content


def write_caml_lists(folder: Path, name: str, hadms: dict[str, Sequence[int]]) -> Path:
    """Write lists of admissions as CAML has them; `hadms` by train, dev, test."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, some in hadms.items():
        lines = "".join(f"{one}\n" for one in some)
        (folder / f"{split}_{name}_hadm_ids.csv").write_text(lines)
    return folder
