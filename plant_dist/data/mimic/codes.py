"""ICD codes of admissions: read as text, dotted by the rules, named by the dictionary tables.

A code is never a number: 0389 and 389 are two codes. Must not know notes, splits or label sets.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import numpy as np

from plant_dist.data.csr import Csr, Int64
from plant_dist.data.mimic.tables import Tables, as_number
from plant_dist.errors import DataError

DIAGNOSIS, PROCEDURE = "diagnoses", "procedures"
KINDS = (DIAGNOSIS, PROCEDURE)


@dataclass(frozen=True)
class Coding:
    """Which codes count, and how they are called.

    Attributes:
        versions: 9, 10 or both.
        kinds: diagnoses, procedures or both.
    """

    versions: tuple[int, ...] = (9,)
    kinds: tuple[str, ...] = KINDS

    def name(self, code: str, kind: str, version: int) -> str:
        """Return the label id of an undotted code."""
        name = dotted(code, kind, version)
        # V10.1 is a code of both versions, and not the same thing.
        return name if len(self.versions) == 1 else f"ICD{version}:{name}"


def dotted(code: str, kind: str, version: int) -> str:
    """Put the dot where coders write it.

    ICD-9 diagnoses after 3 characters, external causes (E) after 4, procedures after 2; ICD-10
    diagnoses after 3; ICD-10 procedures have none.

    Args:
        code: without a dot.
        kind: `diagnoses` or `procedures`.
        version: 9 or 10.
    """
    if kind == PROCEDURE:
        place = 2 if version == 9 else len(code)
    else:
        # In ICD-10 E is the chapter of endocrine diseases, no external cause.
        place = 4 if version == 9 and code.startswith("E") else 3
    return f"{code[:place]}.{code[place:]}" if len(code) > place else code


@dataclass(frozen=True)
class AdmissionCodes:
    """Distinct codes by admission.

    Attributes:
        admissions: (A,) int64, rising.
        codes: A rows of code numbers, each rising.
        names: the label id of each code number, sorted.
        nulls: rows without a code, which were left out.
    """

    admissions: Int64
    codes: Csr
    names: tuple[str, ...]
    nulls: int

    def of(self, admissions: Int64) -> Csr:
        """Return the codes of given admissions; those without any get an empty row."""
        places = np.searchsorted(self.admissions, admissions)
        known = places < len(self.admissions)
        known[known] = self.admissions[places[known]] == admissions[known]
        # An empty row at the end stands for admissions that no code table mentions.
        offsets = np.append(self.codes.offsets, self.codes.offsets[-1])
        rows = np.where(known, places, len(self.admissions))
        return Csr(offsets, self.codes.values).take(rows)


def read_codes(tables: Tables, coding: Coding) -> AdmissionCodes:
    """Read the code tables: 12 bytes a row in memory, and each distinct code once.

    Raises:
        DataError: a table or column is missing, a row is broken, a version is neither 9 nor 10.
    """
    admissions, numbers = array("q"), array("i")
    known: dict[tuple[str, str, str], int] = {}
    nulls = 0
    for kind in coding.kinds:
        table = f"{kind}_icd"
        for row in tables.rows(table, _code_columns(tables)):
            admission, code, version = row.values
            # A row of a version that is not wanted says nothing, whatever else it holds.
            if _version(version, row.where) not in coding.versions:
                continue
            if not code or not admission:
                nulls += 1
                continue
            admissions.append(as_number(admission, "hadm_id", row.where))
            numbers.append(known.setdefault((code, kind, version), len(known)))
    names = [coding.name(code, kind, _version(version, "")) for code, kind, version in known]
    return _grouped(np.array(admissions, np.int64), np.array(numbers, np.int64), names, nulls)


def read_names(tables: Tables, coding: Coding) -> dict[str, str]:
    """Return long titles by label id; codes that the dictionary tables lack are missing.

    Raises:
        DataError: a dictionary table lacks a column or has a broken row.
    """
    titles = {}
    for kind in coding.kinds:
        table = f"d_icd_{kind}"
        # A convenience: a user who fetched only what training needs may lack them.
        if table not in tables:
            continue
        for row in tables.rows(table, (*_code_columns(tables)[1:], "long_title")):
            code, version, title = row.values
            if code and _version(version, row.where) in coding.versions:
                titles[coding.name(code, kind, _version(version, row.where))] = title
    return titles


def _code_columns(tables: Tables) -> tuple[str, ...]:
    # MIMIC-III knows ICD-9 only, and has no column to say so.
    return ("hadm_id", "icd9_code", "icd_version?") if tables.release == 3 else (
        "hadm_id", "icd_code", "icd_version")  # fmt: skip


def _version(cell: str, where: str) -> int:
    if cell in ("", "9"):
        return 9
    if cell == "10":
        return 10
    raise DataError(f"{where}: icd_version is {cell!r}, expected 9 or 10")


def _grouped(admissions: Int64, numbers: Int64, names: list[str], nulls: int) -> AdmissionCodes:
    """Sort (admission, code) pairs, drop repetitions, renumber codes by their names."""
    # Two spellings of one code would be two labels of one name; sorted names are stable.
    ordered = sorted(set(names))
    place = {name: number for number, name in enumerate(ordered)}
    renumbered = np.array([place[name] for name in names], np.int64)[numbers]
    order = np.lexsort((renumbered, admissions))
    admissions, renumbered = admissions[order], renumbered[order]
    first = np.ones(len(order), bool)
    first[1:] = (np.diff(admissions) != 0) | (np.diff(renumbered) != 0)
    distinct, lengths = np.unique(admissions[first], return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    codes = Csr(offsets, renumbered[first].astype(np.int32))
    return AdmissionCodes(distinct, codes, tuple(ordered), nulls)
