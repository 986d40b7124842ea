"""MDACE: evidence of codes, annotated by coders, on the documents of MIMIC-III.

The corpus is that of the reader `mimic`, with the same options, and with spans where MDACE has
annotated an admission's discharge summary; so a classifier of `mimicfull` is explained on what it
was made for. Further options: `annotations`, the folder of MDACE's JSON files (below `data.path`
unless absolute); `only_annotated` leaves out every other admission. Notes of other kinds
(radiology, nursing) are annotated too; they are in no document. Evidence for codes
outside the label set is left out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from plant_dist.artifacts import digest_of
from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora.mimic import MimicCorpus, checked_options
from plant_dist.data.corpora.mimic import Options as MimicOptions
from plant_dist.data.files.sources import sources_digest
from plant_dist.data.mimic.codes import DIAGNOSIS, PROCEDURE, Coding
from plant_dist.data.mimic.notes import SEPARATOR, Note
from plant_dist.data.mimic.tables import as_number
from plant_dist.data.records import Document, Span
from plant_dist.errors import ConfigError, DataError

# Of code systems; MDACE's third, CPT, is not in MIMIC's code tables.
_SYSTEMS = {
    "ICD-9-CM": (DIAGNOSIS, 9), "ICD-9-PCS": (PROCEDURE, 9),
    "ICD-10-CM": (DIAGNOSIS, 10), "ICD-10-PCS": (PROCEDURE, 10),
}  # fmt: skip


@dataclass(frozen=True)
class Options(MimicOptions):
    """What `data.reader_options` may hold: all of `mimic`, and where the annotations are."""

    annotations: str | None = None
    only_annotated: bool = False


class Annotation(NamedTuple):
    """Characters of a note that speak for a code, and the file that says so."""

    label: str
    start: int
    end: int
    where: str


def open(data: DataConfig) -> MdaceCorpus:
    """Open MIMIC-III with its annotations; nothing is read yet.

    Raises:
        ConfigError: as the reader `mimic`; no annotations are named; or the text is normalised,
            so that characters are no longer those annotated.
    """
    options = checked_options(data, Options, "mdace")
    assert isinstance(options, Options)
    if options.annotations is None:
        raise ConfigError(
            "data.reader_options.annotations is not set; name the folder of MDACE's JSON files"
        )
    if options.text != "none":
        raise ConfigError(
            f"data.reader_options.text is {options.text}, but evidence counts characters of the "
            "text as it is; set it to none"
        )
    return MdaceCorpus(data, options, options.annotations, options.only_annotated)


class MdaceCorpus(MimicCorpus):
    """Admissions of MIMIC-III with gold evidence."""

    def __init__(
        self, data: DataConfig, options: MimicOptions, annotations: str, only_annotated: bool
    ) -> None:
        super().__init__(data, options)
        self._annotations = self._folder / os.path.expandvars(annotations)
        self._only_annotated = only_annotated

    def describe(self) -> str:
        """Return the corpus and its annotations in one line."""
        notes = len(self._by_note)
        spans = sum(len(found) for found in self._by_note.values())
        return f"{super().describe()}; MDACE: {spans} spans in {notes} notes of all kinds"

    def fingerprint(self) -> str:
        """Return a hash of the tables, the lists and the annotations."""
        return digest_of([super().fingerprint(), sources_digest([str(self._annotations)])])

    def documents(self) -> Iterator[Document]:
        """Stream the admissions; those without evidence only if they are asked for."""
        for document in super().documents():
            if document.evidence or not self._only_annotated:
                yield document

    def _evidence(self, admission: int, notes: list[Note]) -> tuple[Span, ...]:
        spans = []
        begin = 0
        for note in notes:
            for one in self._by_note.get((admission, note.number), ()):
                # Evidence for a code that is no label would make it one, in this corpus alone.
                if one.label not in self._label_names:
                    continue
                if not 0 <= one.start <= one.end <= len(note.text):
                    raise DataError(
                        f"{one.where}: evidence for {one.label} at characters {one.start} to "
                        f"{one.end}, but note {note.number} has {len(note.text)}; are notes and "
                        "annotations of one release?"
                    )
                spans.append(Span(one.label, begin + one.start, begin + one.end))
            begin += len(note.text) + len(SEPARATOR)
        return tuple(spans)

    @cached_property
    def _label_names(self) -> frozenset[str]:
        return frozenset(label.id for label in self.labels())

    @cached_property
    def _by_note(self) -> dict[tuple[int, int], list[Annotation]]:
        """Annotations by admission and ROW_ID."""
        files = sorted(self._annotations.rglob("*.json"))
        if not files:
            raise DataError(
                f"{self._annotations} holds no JSON file; set data.reader_options.annotations to "
                "the folder of MDACE's annotations"
            )
        found: dict[tuple[int, int], list[Annotation]] = {}
        for file in files:
            for admission, number, annotation in _annotations(file, self._coding):
                found.setdefault((admission, number), []).append(annotation)
        return found


def _annotations(file: Path, coding: Coding) -> Iterator[tuple[int, int, Annotation]]:
    """Yield admission, note and annotation of a file, of the code systems that count."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        admission = as_number(str(content["hadm_id"]), "hadm_id", str(file))
        for note in content["notes"]:
            number = as_number(str(note["note_id"]), "note_id", str(file))
            for one in note["annotations"]:
                label = _label(one, coding, file)
                if label is not None:
                    span = int(one["begin"]), int(one["end"])
                    yield admission, number, Annotation(label, *span, f"{file} note {number}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{file}: expected an object with hadm_id and notes of note_id and annotations "
            f"(begin, end, code, code_system), found otherwise: {repr(error)[:120]}"
        ) from None


def _label(annotation: dict[str, Any], coding: Coding, file: Path) -> str | None:
    """Return the label id; None for a code of a system that this corpus does not use."""
    code, system = str(annotation["code"]).strip(), str(annotation["code_system"]).strip()
    kind, version = _SYSTEMS.get(system, (None, None))
    if kind is None or version not in coding.versions or kind not in coding.kinds:
        return None
    # With dots or without: the same name as in the code tables.
    return coding.name(code.replace(".", ""), kind, version)
