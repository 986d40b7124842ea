"""Discharge summaries by admission: one pass over the notes table, texts spooled to disk.

The table is in no useful order, and addenda stand far from their summaries. So every text that is
kept goes to a scratch file as it streams by, and memory holds 64 bytes a note: where it lies and
what orders it. Admissions are then read back one at a time. Must not know codes or splits.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np

from plant_dist.data.csr import Int64
from plant_dist.data.mimic.tables import Cells, Tables, as_number
from plant_dist.errors import DataError
from plant_dist.logs import progress

REPORT, ADDENDUM = 0, 1
# Between the notes of an admission.
SEPARATOR = "\n"
_COLUMNS = {
    3: ("noteevents", ("row_id", "subject_id", "hadm_id", "description", "charttime?",
                       "chartdate", "category", "iserror?", "text")),
    4: ("discharge", ("note_seq", "subject_id", "hadm_id", "note_type", "charttime",
                      "storetime?", "note_id", "iserror?", "text")),
}  # fmt: skip
# MIMIC-IV says DS (discharge summary) and AD (addendum).
_CATEGORY = "discharge summary"
_TYPES = {"report": REPORT, "addendum": ADDENDUM, "ds": REPORT, "ad": ADDENDUM}


class Note(NamedTuple):
    """A note: report or addendum, number (ROW_ID or note_seq), text, `file:line` of its begin."""

    kind: int
    number: int
    text: str
    where: str


@dataclass
class _Index:
    """What is known of each note but its text; numbers of 8 bytes."""

    subject: array[int] = field(default_factory=lambda: array("q"))
    admission: array[int] = field(default_factory=lambda: array("q"))
    kind: array[int] = field(default_factory=lambda: array("q"))
    time: array[int] = field(default_factory=lambda: array("q"))
    number: array[int] = field(default_factory=lambda: array("q"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    length: array[int] = field(default_factory=lambda: array("q"))
    line: array[int] = field(default_factory=lambda: array("q"))


class NoteStore:
    """The discharge summaries of a release, admission by admission.

    Attributes:
        admissions: (A,) int64 admission ids, ordered by (patient, admission).
        subjects: (A,) int64, the patient of each.
        left_out: how many notes were left out, by reason.
    """

    def __init__(self, tables: Tables) -> None:
        """Read the notes table.

        Raises:
            DataError: the table breaks its format, an admission is of two patients, or the table
                holds no discharge summary.
        """
        self._tables = tables
        self._table, self._columns = _COLUMNS[tables.release]
        self.left_out = {"no admission": 0, "marked as an error": 0, "no text": 0}
        # Unnamed: it is gone with the process, however that ends. TMPDIR says where it lies.
        self._spool: IO[bytes] = TemporaryFile(prefix="plant-notes-")  # noqa: SIM115
        index = self._read()
        self._arrange(index)

    def _read(self) -> _Index:
        index = _Index()
        end = 0
        rows = self._tables.rows(self._table, self._columns)
        for row in progress(rows, "notes", "notes"):
            if not self._keeps(row):
                continue
            number, subject, admission, kind, time, date = row.values[:6]
            # A table whose lines end the Windows way says the same.
            text = row.values[-1].replace("\r\n", "\n").encode()
            index.subject.append(as_number(subject, "subject_id", row.where))
            index.admission.append(as_number(admission, "hadm_id", row.where))
            index.kind.append(_kind(kind, row.where))
            index.time.append(_time(time or date, row.where))
            index.number.append(as_number(number, self._columns[0], row.where))
            index.offset.append(end)
            index.length.append(len(text))
            index.line.append(int(row.where.rpartition(":")[2]))
            self._spool.write(text)
            end += len(text)
        self._spool.flush()
        if not index.subject:
            raise DataError(f"{self._tables.path(self._table)} holds no discharge summary")
        return index

    def _keeps(self, row: Cells) -> bool:
        *_, category, wrong, text = row.values
        # Only MIMIC-III keeps notes of all kinds in one table.
        if self._tables.release == 3 and category.lower() != _CATEGORY:
            return False
        reasons = {
            "no admission": not row.values[2],
            # Marked by a physician, in MIMIC-III.
            "marked as an error": wrong == "1",
            "no text": not text.strip(),
        }
        for reason, holds in reasons.items():
            if holds:
                self.left_out[reason] += 1
                return False
        return True

    def _arrange(self, index: _Index) -> None:
        """Order notes by patient, admission, report before addendum, time, number."""
        columns = {name: np.frombuffer(column, np.int64) for name, column in vars(index).items()}
        keys = ("number", "time", "kind", "admission", "subject")  # the last sorts first
        order = np.lexsort([columns[key] for key in keys])
        wanted = ("kind", "number", "offset", "length", "line")
        self._notes = {name: columns[name][order] for name in wanted}
        admission, subject = columns["admission"][order], columns["subject"][order]
        begins = np.ones(len(order), bool)
        begins[1:] = (np.diff(admission) != 0) | (np.diff(subject) != 0)
        starts = np.flatnonzero(begins)
        self.admissions: Int64 = admission[starts]
        self.subjects: Int64 = subject[starts]
        self._bounds = np.append(starts, len(order))
        self._refuse_two_patients()

    def _refuse_two_patients(self) -> None:
        distinct, counts = np.unique(self.admissions, return_counts=True)
        if len(distinct) < len(self.admissions):
            twice = distinct[counts > 1][0]
            raise DataError(
                f"{self._tables.path(self._table)}: admission {twice} is of patients "
                f"{', '.join(map(str, self.subjects[self.admissions == twice]))}; an admission "
                "has one patient, so the table is damaged"
            )

    def notes(self, row: int) -> Iterator[Note]:
        """Yield the notes of an admission, in order, each once.

        Args:
            row: index into `admissions`.

        Raises:
            DataError: two notes of one number have different texts.
        """
        before: Note | None = None
        for place in range(self._bounds[row], self._bounds[row + 1]):
            note = self._note(place)
            if before is not None and before[:2] == note[:2]:
                if before.text != note.text:
                    raise DataError(
                        f"{note.where}: {self._columns[0]} {note.number} is also at "
                        f"{before.where}, with another text; remove one of the rows"
                    )
                continue  # the same row twice
            yield note
            before = note

    def _note(self, place: int) -> Note:
        found = {name: int(column[place]) for name, column in self._notes.items()}
        self._spool.seek(found["offset"])
        text = self._spool.read(found["length"]).decode()
        where = f"{self._tables.path(self._table)}:{found['line']}"
        return Note(found["kind"], found["number"], text, where)


def _kind(cell: str, where: str) -> int:
    kind = _TYPES.get(cell.lower())
    if kind is None:
        raise DataError(
            f"{where}: a discharge summary of type {cell!r}; known are {', '.join(_TYPES)}"
        )
    return kind


def _time(cell: str, where: str) -> int:
    """Return `2118-06-02 13:00:00` as the number 21,180,602,130,000; a date as its midnight."""
    digits = "".join(one for one in cell if one.isdecimal())
    if cell and len(digits) < 8:
        raise DataError(f"{where}: time {cell!r} is not like 2118-06-02 13:00:00")
    return int(digits[:14].ljust(14, "0"))
