"""A prepared dataset in the files of other tools (XMC, PECOS, LibMultiLabel, Annif), and in ours.

What a format cannot hold is said, never dropped in silence: evidence, parents of labels, documents
for planting, filtered pairs. Where a format ends a field at a line end or a blank, line ends in
texts and names become blanks (counted), and ids are percent-encoded, which `urllib.parse.unquote`
undoes. Every folder is one that the readers of `corpora/` read again. Must not know where the
dataset came from, nor models.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NamedTuple, cast
from urllib.parse import quote

import numpy as np
from scipy import sparse

from plant_dist.data.csr import Csr
from plant_dist.data.prepared import COLUMNS, PreparedDataset
from plant_dist.data.records import PLANTING_SET, SPLITS
from plant_dist.data.vocabulary import LabelSpace

# What XMC and PECOS call the splits in their file names.
STEMS = {"train": "trn", "validation": "val", "test": "tst"}
# LibMultiLabel, and the filter files of XMC.
LONG_STEMS = {"train": "train", "validation": "valid", "test": "test"}
BATCH_ROWS = 1024
# What a format may have no place for.
EVIDENCE, PARENTS, FILTERED = "evidence spans", "labels with parents", "filtered pairs"
# A byte-order mark that begins a file would be taken for none of its text.
_LINE_ENDS = re.compile("\r\n|\r|\n|^\ufeff")
_LINE_ENDS_AND_TABS = re.compile("\r\n|\r|\n|\t|^\ufeff")
# A percent sign only where it would read as an escape: undoing is exact, and names stay plain.
_UNSAFE_IN_ID = re.compile("[\t\n\r\ufeff]|%(?=[0-9A-Fa-f]{2})")
_UNSAFE_IN_WORD = re.compile("[ \t\n\r\ufeff]|%(?=[0-9A-Fa-f]{2})")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+")
_MADE_URI = "urn:x-label:"


@dataclass
class Exported:
    """What was written.

    Attributes:
        settings: of the `data` section that read it again; values are names inside the folder,
            "" the folder itself.
        options: settings of the `data` section that are no paths.
        flattened: texts and names in which line ends became blanks.
        left_out: what -> how many of them the format cannot hold; only what there is.
    """

    settings: dict[str, str]
    options: dict[str, str]
    flattened: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


class Entry(NamedTuple):
    """A document: id, text, label indices."""

    id: str
    text: str
    labels: list[int]


class _Flattener:
    """Puts blanks for what ends a line, and counts the texts that had any."""

    def __init__(self, pattern: re.Pattern[str] = _LINE_ENDS) -> None:
        self._pattern, self.count = pattern, 0

    def __call__(self, text: str) -> str:
        flat = self._pattern.sub(" ", text)
        self.count += flat != text
        return flat


def export_corpus(dataset: PreparedDataset, name: str, folder: Path) -> Exported:
    """Write a dataset in one of `FORMATS`; documents and labels keep their order.

    Args:
        dataset: a prepared dataset; its documents are streamed.
        name: of the format.
        folder: an empty folder.

    Returns:
        How to read it again, and what had to be changed or left out.
    """
    write, holds = FORMATS[name]
    exported = write(dataset, folder)
    counts = {
        EVIDENCE: sum(_evidence(dataset, split) for split in SPLITS),
        PARENTS: sum(bool(parents) for parents in dataset.label_space.parents),
        FILTERED: sum(len(dataset.ignored_csr(split).values) for split in SPLITS),
        "documents for planting alone": _planting_only(dataset),
    }
    exported.left_out = {
        what: count for what, count in counts.items() if count and what not in holds
    }
    return exported


def write_xmc(dataset: PreparedDataset, folder: Path) -> Exported:
    """Write `{trn,val,tst,lbl}.json.gz`, the matrices `{trn,val,tst}_X_Y.txt` and filter files.

    Nothing is changed: JSON holds any text. A label's own id is the `uid` of its line in `lbl`.
    """
    space = dataset.label_space
    with _lines(folder / "lbl.json.gz") as write:
        for uid, text in zip(space.ids, space.texts, strict=True):
            write(_json({"uid": uid, "title": text}))
    for split in _filled(dataset):
        stem, gold, ignored = STEMS[split], dataset.label_csr(split), dataset.ignored_csr(split)
        with _lines(folder / f"{stem}.json.gz") as write:
            for one in _entries(dataset, split):
                write(_json({"uid": one.id, "title": "", "content": one.text,
                             "target_ind": one.labels}))  # fmt: skip
        with _lines(folder / f"{stem}_X_Y.txt") as write:
            write(f"{gold.size} {len(space)}")
            for row in range(gold.size):
                write(" ".join(f"{label}:1" for label in gold.row(row)))
        if len(ignored.values):
            with _lines(folder / f"filter_labels_{LONG_STEMS[split]}.txt") as write:
                for pair in zip(ignored.owners().tolist(), ignored.values.tolist(), strict=True):
                    write("{} {}".format(*pair))
    return Exported({"path": ""}, {"reader": "xmc", "reader_options.ids": "uid"})


def write_pecos(dataset: PreparedDataset, folder: Path) -> Exported:
    """Write `X.{trn,val,tst}.txt`, `Y.{trn,val,tst}.npz`, `output-items.txt` (names of labels).

    The ids, which PECOS has no place for, are in `document_ids.{trn,val,tst}.txt` and
    `label_ids.txt`, line by line.
    """
    space, flat = dataset.label_space, _Flattener()
    with ExitStack() as files:
        names = files.enter_context(_lines(folder / "output-items.txt"))
        ids = files.enter_context(_lines(folder / "label_ids.txt"))
        for label, text in zip(space.ids, space.texts, strict=True):
            names(flat(text))
            ids(_escaped(label, _UNSAFE_IN_ID))
    for split in _filled(dataset):
        stem = STEMS[split]
        with ExitStack() as files:
            texts = files.enter_context(_lines(folder / f"X.{stem}.txt"))
            ids = files.enter_context(_lines(folder / f"document_ids.{stem}.txt"))
            for one in _entries(dataset, split):
                texts(flat(one.text))
                ids(_escaped(one.id, _UNSAFE_IN_ID))
        sparse.save_npz(folder / f"Y.{stem}.npz", _matrix(dataset.label_csr(split), len(space)))
    return Exported({"path": ""}, {"reader": "pecos"}, flat.count)


def write_libmultilabel(dataset: PreparedDataset, folder: Path) -> Exported:
    """Write `{train,valid,test}.txt`, `id<TAB>label label<TAB>text`, and `labels.jsonl`.

    Labels are separated by blanks there, so that blanks in their ids are percent-encoded;
    `labels.jsonl` (ours) has id, name and parents of each.
    """
    space, flat = dataset.label_space, _Flattener(_LINE_ENDS_AND_TABS)
    words = [_as_word(label) for label in space.ids]
    _write_label_table(space, folder / "labels.jsonl", _as_word)
    for split in _filled(dataset):
        with _lines(folder / f"{LONG_STEMS[split]}.txt") as write:
            for one in _entries(dataset, split):
                labels = " ".join(words[label] for label in one.labels)
                write(f"{_escaped(one.id, _UNSAFE_IN_ID)}\t{labels}\t{flat(one.text)}")
    return Exported(
        {"path": "", "labels_path": "labels.jsonl"}, {"reader": "libmultilabel"}, flat.count
    )


def write_annif(dataset: PreparedDataset, folder: Path) -> Exported:
    """Write `{train,validation,test}.jsonl.gz` and `vocabulary.tsv`, `<uri><TAB>name`.

    An id that is no URI becomes one: `urn:x-label:` and the id percent-encoded.
    """
    space, flat = dataset.label_space, _Flattener(_LINE_ENDS_AND_TABS)
    uris = [_uri(label) for label in space.ids]
    with _lines(folder / "vocabulary.tsv") as write:
        for uri, text in zip(uris, space.texts, strict=True):
            write(f"<{uri}>\t{flat(text)}")
    settings = {"labels_path": "vocabulary.tsv"}
    for split in _filled(dataset):
        with _lines(folder / f"{split}.jsonl.gz") as write:
            for one in _entries(dataset, split):
                subjects = [{"uri": uris[label]} for label in one.labels]
                write(_json({"document_id": one.id, "text": one.text, "subjects": subjects}))
        settings[f"{split}_path"] = f"{split}.jsonl.gz"
    return Exported(settings, {"reader": "annif"}, flat.count)


def write_jsonl(dataset: PreparedDataset, folder: Path) -> Exported:
    """Write `{train,validation,test}.jsonl.gz` and `labels.jsonl`, for the reader `generic`.

    `predict` and `explain` read them too, evidence included.
    """
    space = dataset.label_space
    _write_label_table(space, folder / "labels.jsonl")
    settings = {"labels_path": "labels.jsonl"}
    for split in _filled(dataset):
        with _lines(folder / f"{split}.jsonl.gz") as write:
            for row in _rows(dataset, split):
                spans = zip(
                    row["evidence_label"], row["evidence_start"], row["evidence_end"], strict=True
                )
                write(_json({
                    "id": row["id"], "split": split, "text": row["text"],
                    "labels": [space.ids[label] for label in row["labels"]],
                    "evidence": [{"label": space.ids[label], "start": start, "end": end}
                                 for label, start, end in spans],
                }))  # fmt: skip
        settings[f"{split}_path"] = f"{split}.jsonl.gz"
    return Exported(settings, {"reader": "generic"})


# Name -> what writes it, and what it has a place for.
FORMATS: dict[str, tuple[Callable[[PreparedDataset, Path], Exported], frozenset[str]]] = {
    "xmc": (write_xmc, frozenset({FILTERED})),
    "pecos": (write_pecos, frozenset()),
    "libmultilabel": (write_libmultilabel, frozenset({PARENTS})),
    "annif": (write_annif, frozenset()),
    "jsonl": (write_jsonl, frozenset({EVIDENCE, PARENTS})),
}


def _filled(dataset: PreparedDataset) -> list[str]:
    return [split for split in SPLITS if dataset.label_csr(split).size]


def _entries(dataset: PreparedDataset, split: str) -> Iterator[Entry]:
    for row in _rows(dataset, split):
        yield Entry(row["id"], row["text"], row["labels"])


def _rows(dataset: PreparedDataset, split: str) -> Iterator[dict[str, Any]]:
    """Stream a split's documents without their tokens, a batch in memory at a time."""
    columns = [name for name in COLUMNS if name != "input_ids"]
    documents = dataset.documents(split).select_columns(columns)
    for batch in documents.with_format("arrow").iter(BATCH_ROWS):
        yield from batch.to_pylist()


@contextmanager
def _lines(path: Path) -> Iterator[Callable[[str], object]]:
    """Open a text file, gzipped where its name says so; yields what writes one line."""
    # Only a line feed, whatever the system calls a line end; no time, so that bytes repeat.
    with path.open("wb") as raw, ExitStack() as stack:
        file: IO[bytes] = raw
        if path.suffix == ".gz":
            packed = gzip.GzipFile("", "wb", fileobj=raw, mtime=0)
            file = cast(IO[bytes], stack.enter_context(packed))
        yield lambda line: file.write(f"{line}\n".encode())


def _json(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False)


def _escaped(name: str, unsafe: re.Pattern[str]) -> str:
    return unsafe.sub(lambda found: quote(found.group(), safe=""), name)


def _uri(label: str) -> str:
    if _URI.fullmatch(label) and not label.startswith(_MADE_URI):
        return label
    return _MADE_URI + quote(label, safe="")


def _write_label_table(space: LabelSpace, path: Path, rename: Callable[[str], str] = str) -> None:
    """Write id, name and parents of every label; `rename` gives ids their form in the documents."""
    with _lines(path) as write:
        for label, text, parents in zip(space.ids, space.texts, space.parents, strict=True):
            # A parent need not be a label itself.
            above = [rename(one) for one in parents]
            write(_json({"id": rename(label), "text": text, "parents": above}))


def _as_word(label: str) -> str:
    return _escaped(label, _UNSAFE_IN_WORD)


def _matrix(gold: Csr, width: int) -> sparse.csr_array:
    ones = np.ones(len(gold.values), np.float32)
    return sparse.csr_array((ones, gold.values, gold.offsets), shape=(gold.size, width))


def _evidence(dataset: PreparedDataset, split: str) -> int:
    lengths = dataset.documents(split).data.column("evidence_label")
    return sum(len(chunk.flatten()) for chunk in lengths.chunks)


def _planting_only(dataset: PreparedDataset) -> int:
    """Return how many documents planting counts that the experiment does not train on."""
    if dataset.planting_set != PLANTING_SET:
        return 0
    return dataset.label_csr(PLANTING_SET).size - dataset.label_csr("train").size
