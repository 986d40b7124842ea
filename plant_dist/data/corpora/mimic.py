"""MIMIC-III v1.4 and MIMIC-IV 2.2: discharge summaries and their ICD codes, from PhysioNet's files.

`data.path` is a folder that holds the tables somewhere below it. A document is an admission: its
discharge summaries with their addenda, in order; its group is the patient. Options
(`data.reader_options`): see `Options`. Lists of admissions (`splits`, `subset`) are looked for
below `data.path` where they are no absolute path; without them the reader splits patients by
iterative stratification, from `split_seed` and the fractions of the `data` section. Must not know
tokens or the prepared dataset.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from plant_dist.artifacts import digest_of
from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.sources import sources_digest
from plant_dist.data.mimic.codes import KINDS, Coding, read_codes, read_names
from plant_dist.data.mimic.experiment import (
    LABEL_SETS,
    Admissions,
    Experiment,
    Protocol,
    design,
)
from plant_dist.data.mimic.lists import AdmissionLists, list_files, read_code_list, read_lists
from plant_dist.data.mimic.notes import SEPARATOR, Note, NoteStore
from plant_dist.data.mimic.tables import Tables
from plant_dist.data.mimic.wording import NORMALISATIONS
from plant_dist.data.records import DOCUMENT_SETS, Document, Label, Span
from plant_dist.data.splits import UNSAID
from plant_dist.errors import ConfigError
from plant_dist.logs import get_logger

_VERSIONS = {"9": (9,), "10": (10,), "both": (9, 10)}
_TABLES = ("noteevents", "discharge", *(f"{kind}_icd" for kind in KINDS),
           *(f"d_icd_{kind}" for kind in KINDS))  # fmt: skip
_log = get_logger(__name__)


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader.

    Attributes:
        icd: "9", "10" or "both"; MIMIC-III has 9 only.
        codes: kinds of codes that are labels: diagnoses, procedures.
        label_set: full, top-50, rare-50, few (test codes of 1 to 5 training documents).
        min_documents: codes of fewer documents are dropped; 10 in benchmarks on MIMIC-IV.
        code_list: file of the codes to keep, one a line, in place of those the label set chooses.
        text: none (as it is), caml (words with a letter, lower case), replication (a-z and 0-9,
            no digits alone, lower case).
        splits: lists of admissions by split, of the full corpus; see `data/mimic/lists.py`.
        subset: lists of the experiment's own admissions, where it is narrower (rare-50).
        split_seed: of the split made where `splits` is unset.
    """

    icd: str = "9"
    codes: list[str] | None = None
    label_set: str = "full"
    min_documents: int = 1
    code_list: str | None = None
    text: str = "none"
    splits: str | None = None
    subset: str | None = None
    split_seed: int = 0


def open(data: DataConfig) -> MimicCorpus:
    """Open the release below `data.path`; nothing is read yet.

    Raises:
        ConfigError: no path is set, an option is unknown or has no such value, or `data.split`
            asks for a split that is not the reader's.
    """
    return MimicCorpus(data, checked_options(data, Options, "mimic"))


def checked_options(data: DataConfig, kind: type[Options], reader: str) -> Options:
    """Parse the reader's options.

    Raises:
        ConfigError: see `open`.
    """
    options = parse_options(kind, data.reader_options, reader)
    choices = {"icd": tuple(_VERSIONS), "label_set": LABEL_SETS, "text": tuple(NORMALISATIONS)}
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            raise ConfigError(
                f"data.reader_options.{name} is {getattr(options, name)!r}; choose one of: "
                f"{', '.join(allowed)}"
            )
    for one in options.codes or ():
        if one not in KINDS:
            raise ConfigError(
                f"data.reader_options.codes holds {one!r}; choose among: {', '.join(KINDS)}"
            )
    if data.path is None:
        raise ConfigError("data.path is not set; name the folder of the MIMIC tables")
    if data.split != "given":
        raise ConfigError(
            f"data.split is {data.split}, but the reader {reader} itself splits by patient, since "
            "label sets depend on it; set data.split=given and data.reader_options.splits or "
            ".split_seed"
        )
    return options


class MimicCorpus:
    """Admissions with a discharge summary as documents, ICD codes as labels."""

    def __init__(self, data: DataConfig, options: Options) -> None:
        self._data, self._options = data, options
        self._folder = Path(str(data.path))
        self._coding = Coding(_VERSIONS[options.icd], tuple(options.codes or KINDS))
        self._normalise = NORMALISATIONS[options.text]

    def describe(self) -> str:
        """Return release, label set and what was left out, in one line."""
        options, left_out = self._options, self._experiment.left_out | self._notes.left_out
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        return (
            f"MIMIC-{'III' if self._tables.release == 3 else 'IV'}, ICD {options.icd}, "
            f"{', '.join(self._coding.kinds)}, label set {options.label_set}, text {options.text}, "
            f"splits {options.splits or f'made from seed {options.split_seed}'}; left out: "
            f"{reasons or 'nothing'}"
        )

    def fingerprint(self) -> str:
        """Return a hash of names, sizes and times of the tables, and of what the lists hold."""
        # The tables first: where they are missing, so are most likely the lists.
        tables = self._tables.fingerprint(_TABLES)
        lists = [str(file) for one in self._list_files() for _, file in one]
        if self._options.code_list is not None:
            lists.append(str(self._place(self._options.code_list)))
        return digest_of([tables, sources_digest(lists)])

    def labels(self) -> Iterator[Label]:
        """Stream the codes of the label set, sorted, with their long titles."""
        titles = read_names(self._tables, self._coding)
        for number in self._experiment.labels:
            name = self._admissions.names[number]
            yield Label(name, titles.get(name, ""))

    def documents(self) -> Iterator[Document]:
        """Stream the admissions of the experiment, ordered by patient and admission."""
        experiment, admissions = self._experiment, self._admissions
        for row in np.flatnonzero(experiment.splits != UNSAID):
            notes = list(self._notes.notes(int(row)))
            admission = int(admissions.ids[row])
            yield Document(
                id=str(admission),
                text=self._normalise(SEPARATOR.join(note.text for note in notes)),
                labels=tuple(admissions.names[code] for code in experiment.codes.row(int(row))),
                split=DOCUMENT_SETS[experiment.splits[row]],
                group=str(admissions.subjects[row]),
                evidence=self._evidence(admission, notes),
                where=notes[0].where,
            )

    def _evidence(self, admission: int, notes: list[Note]) -> tuple[Span, ...]:
        """Return spans of an admission's text; the tables themselves have none."""
        return ()

    @cached_property
    def _tables(self) -> Tables:
        tables = Tables(self._folder, self._data.encoding)
        if tables.release == 3 and self._options.icd != "9":
            raise ConfigError(
                f"data.reader_options.icd is {self._options.icd!r}, but {self._folder} is "
                "MIMIC-III, which is coded in ICD-9; set it to '9'"
            )
        return tables

    @cached_property
    def _notes(self) -> NoteStore:
        return NoteStore(self._tables)

    @cached_property
    def _admissions(self) -> Admissions:
        # Codes first: a mistake in the small tables shows before the long one is read.
        codes = read_codes(self._tables, self._coding)
        if codes.nulls:
            _log.info("mimic: %d rows of the code tables hold no code; left out", codes.nulls)
        notes = self._notes
        return Admissions(notes.admissions, notes.subjects, codes.of(notes.admissions), codes.names)

    @cached_property
    def _experiment(self) -> Experiment:
        options, data = self._options, self._data
        shares = (1 - data.validation_fraction - data.test_fraction, data.validation_fraction,
                  data.test_fraction)  # fmt: skip
        protocol = Protocol(
            options.label_set, options.min_documents, data.planting_corpus == "training_split",
            options.split_seed, shares,
            None if options.code_list is None else read_code_list(self._place(options.code_list)),
        )  # fmt: skip
        # Before the tables, for the same reason.
        lists, subset = self._lists()
        found = design(self._admissions, protocol, lists, subset)
        self._warn_of_missing(subset or lists)
        return found

    def _lists(self) -> tuple[AdmissionLists | None, AdmissionLists | None]:
        """Return the lists of the full corpus and of the experiment, as far as there are any."""
        options = self._options
        splits = None if options.splits is None else self._place(options.splits)
        lists = None if splits is None else read_lists(splits, "full")
        if options.subset is not None:
            return lists, read_lists(self._place(options.subset), "50")
        # CAML's folder holds both the lists of all admissions and those of the top 50.
        if splits is not None and self._has_top_lists(splits):
            return lists, read_lists(splits, "50")
        return lists, None

    def _has_top_lists(self, splits: Path) -> bool:
        if self._options.label_set != "top-50":
            return False
        return list_files(splits, "50") != list_files(splits, "full")

    def _list_files(self) -> list[list[tuple[str | None, Path]]]:
        options = self._options
        found = []
        if options.splits is not None:
            found += [list_files(self._place(options.splits), word) for word in ("full", "50")]
        if options.subset is not None:
            found.append(list_files(self._place(options.subset), "50"))
        return found

    def _place(self, name: str) -> Path:
        # Below data.path, unless absolute: then one path is all that differs between machines.
        return self._folder / os.path.expandvars(name)

    def _warn_of_missing(self, lists: AdmissionLists | None) -> None:
        known = set(self._admissions.ids.tolist())
        missing = [one for one in (lists.splits if lists else ()) if one not in known]
        if missing:
            _log.warning(
                "mimic: %d admissions of the lists have no discharge summary, such as %d",
                len(missing), missing[0],
            )  # fmt: skip
