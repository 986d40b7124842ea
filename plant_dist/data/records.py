"""What a corpus is made of: documents, labels, evidence spans, and the reader's interface.

Every reader of `corpora/` yields these records and nothing else; everything downstream works on
integers made from them. This module must not know any file format, tokenizer or split rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

SPLITS = ("train", "validation", "test")
# Training documents outside the experiment, from which only planting may learn.
PLANTING_SET = "planting"
DOCUMENT_SETS = (*SPLITS, PLANTING_SET)


@dataclass(frozen=True)
class Span:
    """Characters `start` (inclusive) to `end` (exclusive) of a text that speak for a label."""

    label: str
    start: int
    end: int


@dataclass(frozen=True)
class Document:
    """One text and the labels a person gave it.

    Attributes:
        id: unique in the corpus.
        text: as the corpus holds it, Unicode untouched.
        labels: label ids; their order and repetition carry no meaning.
        split: one of `DOCUMENT_SETS`, or None where the corpus says nothing.
        group: what must not cross a split, such as a patient; None stands alone.
        evidence: spans into `text`.
        where: place in the source (`file:line`), for error messages only.
        ignored: labels that do not count for this document (filter files), gold or not: left out
            of rankings and of the training loss.
    """

    id: str
    text: str
    labels: tuple[str, ...] = ()
    split: str | None = None
    group: str | None = None
    evidence: tuple[Span, ...] = ()
    where: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Label:
    """A member of the label space: stable id, name or description, ids of its parents.

    where: place in the source (`file:line`), for error messages only; two labels that differ in it
        alone are equal.
    """

    id: str
    text: str
    parents: tuple[str, ...] = ()
    where: str = field(default="", compare=False)


class Corpus(Protocol):
    """What a reader gives; each call starts a fresh stream of constant memory."""

    def documents(self) -> Iterator[Document]:
        """Stream the documents. Raises DataError at the first that breaks its format."""
        ...

    def labels(self) -> Iterator[Label]:
        """Stream the declared labels in their stable order; may be empty."""
        ...

    def fingerprint(self) -> str:
        """Return a hash of the sources as they are now; another hash means another corpus."""
        ...

    def describe(self) -> str:
        """Return one line that says what was read, for the statistics."""
        ...
