"""One pass over a corpus: every document checked and written to Arrow, the rest kept as integers.

The text goes to disk at once; what stays in memory is some tens of bytes a document, and the
distinct label ids. Rules that hold for every corpus are enforced here, so that readers stay
small. Must not know splits that we make, nor tokens.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from plant_dist.data.csr import Int8
from plant_dist.data.duplicates import text_key
from plant_dist.data.records import DOCUMENT_SETS, Corpus, Document
from plant_dist.data.splits import UNSAID
from plant_dist.errors import DataError
from plant_dist.logs import progress

CHUNK_DOCUMENTS = 1024
# Above it a chunk ends early: a thousand documents of 200 k tokens would fill the memory, and
# pass the 2 GiB of Arrow's short strings.
CHUNK_CHARACTERS = 1 << 26
_INTEGERS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("text", pa.string()),
        ("where", pa.string()),  # for errors found only at the end, such as a repeated id
        ("labels", _INTEGERS),
        ("evidence_label", _INTEGERS),
        ("evidence_start", _INTEGERS),
        ("evidence_end", _INTEGERS),
        ("ignored", _INTEGERS),
    ]
)


@dataclass(frozen=True)
class Gathered:
    """A corpus on disk, and what splitting it needs in memory.

    Attributes:
        path: Arrow stream of `SCHEMA`; labels are numbers of first sight.
        splits: (N,) int8, the corpus's own split, an index into `DOCUMENT_SETS` or `UNSAID`.
        groups: (N,) uint64, equal for documents of one group.
        text_keys: (N,) uint64, see `duplicates.text_key`.
        label_ids: the id behind each label number.
        text_digest: sha256 over all texts in order; names the cache of their tokens.
    """

    path: Path
    splits: Int8
    groups: npt.NDArray[np.uint64]
    text_keys: npt.NDArray[np.uint64]
    label_ids: list[str]
    text_digest: str

    def table(self) -> Any:
        """Return the Arrow table, memory-mapped."""
        return pa.ipc.open_stream(pa.memory_map(str(self.path))).read_all()

    def identify(self, row: int) -> str:
        """Return a document's id."""
        name: str = self.table().column("id")[row].as_py()
        return name


def gather(corpus: Corpus, path: Path, keep_empty: bool = False) -> Gathered:
    """Stream a corpus to an Arrow file.

    Args:
        corpus: what to read.
        path: the file to write.
        keep_empty: take documents without text; published test sets hold some.

    Raises:
        DataError: the corpus is empty; a document has no text, an id that came before, evidence
            outside its text, or characters that are no Unicode text; and what the reader raises.
    """
    # One batch of Arrow a chunk: the text of no more than a chunk is ever in memory.
    pass_ = _Pass(keep_empty)
    with pa.ipc.new_stream(str(path), SCHEMA) as writer:
        for documents in _chunked(progress(corpus.documents(), "read", "documents")):
            writer.write_batch(pass_.enter(documents))
    if not pass_.splits:
        raise DataError(f"the corpus holds no document ({corpus.describe()}); check data.path")
    gathered = pass_.finish(path)
    _refuse_repeated_ids(np.array(pass_.id_keys, np.uint64), gathered)
    return gathered


class _Pass:
    """What accumulates while documents stream by."""

    def __init__(self, keep_empty: bool) -> None:
        self.keep_empty = keep_empty
        # `array`, not lists: 8 bytes a number instead of a Python object and a pointer to it.
        self.splits = array("b")
        self.groups, self.text_keys, self.id_keys = array("Q"), array("Q"), array("Q")
        self.numbers: dict[str, int] = {}
        self.digest = hashlib.sha256()

    def enter(self, documents: list[Document]) -> Any:
        """Check documents and return them as an Arrow batch."""
        rows = [self._enter_one(document) for document in documents]
        columns = [
            pa.array(column, field.type)
            for column, field in zip(zip(*rows, strict=True), SCHEMA, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def _enter_one(self, document: Document) -> tuple[Any, ...]:
        _check(document, self.keep_empty)
        # The length keeps two texts apart from one that is both in a row.
        encoded = document.text.encode()
        self.digest.update(len(encoded).to_bytes(8, "little"))
        self.digest.update(encoded)
        self.text_keys.append(text_key(document.text))
        self.id_keys.append(_key(document.id))
        # Without a group a document is its own; the prefix keeps the two kinds of name apart.
        alone = f"row {len(self.splits)}"
        self.groups.append(_key(alone if document.group is None else f"group {document.group}"))
        self.splits.append(
            UNSAID if document.split is None else DOCUMENT_SETS.index(document.split)
        )
        spans = document.evidence
        return (
            document.id,
            document.text,
            document.where,
            # A label given twice is one label; `dict.fromkeys` keeps the order, a set would not.
            [self._number(label, document) for label in dict.fromkeys(document.labels)],
            # A span may speak for a label that the document lacks; the label is still one.
            [self._number(span.label, document) for span in spans],
            [span.start for span in spans],
            [span.end for span in spans],
            [self._number(label, document) for label in dict.fromkeys(document.ignored)],
        )

    def _number(self, label: str, document: Document) -> int:
        number = self.numbers.get(label)
        if number is None:
            _refuse_surrogates(label, "a label", document)
            number = self.numbers[label] = len(self.numbers)
        return number

    def finish(self, path: Path) -> Gathered:
        """Freeze what was accumulated."""
        return Gathered(
            path=path,
            splits=np.array(self.splits, np.int8),
            groups=np.array(self.groups, np.uint64),
            text_keys=np.array(self.text_keys, np.uint64),
            label_ids=list(self.numbers),
            text_digest=self.digest.hexdigest(),
        )


def _chunked(documents: Iterable[Document]) -> Iterator[list[Document]]:
    chunk: list[Document] = []
    characters = 0
    for document in documents:
        chunk.append(document)
        characters += len(document.text)
        if len(chunk) == CHUNK_DOCUMENTS or characters >= CHUNK_CHARACTERS:
            yield chunk
            chunk, characters = [], 0
    if chunk:
        yield chunk


def _check(document: Document, keep_empty: bool) -> None:
    """Refuse a document that breaks a rule of every corpus."""
    if not keep_empty and not document.text.strip():
        raise DataError(
            f"{document.where}: document {document.id!r} has no text; correct data.text_column, "
            "remove it from the corpus, or keep such documents with data.empty_text=keep"
        )
    _refuse_surrogates(document.id, "the id", document)
    _refuse_surrogates(document.text, "the text", document)
    _refuse_surrogates(document.group or "", "the group", document)
    length = len(document.text)
    for span in document.evidence:
        # Annotators do leave empty spans (start = end); they are inside the text, and harmless.
        if not 0 <= span.start <= span.end <= length:
            raise DataError(
                f"{document.where}: document {document.id!r} has evidence for {span.label!r} at "
                f"characters {span.start} to {span.end}, but its text has {length}"
            )


def _refuse_surrogates(value: str, what: str, document: Document) -> None:
    r"""JSON can spell half a character (`\ud800`), which no UTF-8 file can hold."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"{document.where}: {what} of document {document.id!a} holds half a surrogate pair "
            f"at character {error.start}; write the character whole"
        ) from None


def _key(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _refuse_repeated_ids(keys: npt.NDArray[np.uint64], gathered: Gathered) -> None:
    # Sorting 8 bytes a document finds repeats without a set of all ids in memory.
    order = np.argsort(keys, kind="stable")
    twins = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if not len(twins):
        return
    table = gathered.table()
    # Equal keys lie side by side; each pair is looked up to see whether the ids are equal too.
    for twin in twins:
        first, second = (table.slice(int(row), 1).to_pylist()[0] for row in order[[twin, twin + 1]])
        if first["id"] == second["id"]:  # and not two ids of one 64-bit key
            raise DataError(
                f"id {first['id']!r} is at {first['where']} and again at {second['where']}; "
                "give each document its own id"
            )
