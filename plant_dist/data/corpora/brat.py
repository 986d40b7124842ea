"""Folders annotated with brat: texts (`NAME.txt`) beside their annotations (`NAME.ann`).

Clinical sets such as CANTEMIST travel so: a span of characters carries a code. `data.path` is
searched with its folders, and a folder named after a split (`train-set`, `dev1`, `test`) says it;
or each split has its own path. Options (`data.reader_options`): `label_from` says where a label
stands: in the annotator's `note` on a span, in the id of a normalisation (`reference`), or in the
span's `type`; `types` keeps spans of these types only; `within` reads only folders of this name,
where a release holds the same texts several times. `data.labels_path` names the labels, as for
`generic`. Must not know how labels are indexed or text is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import open_corpus, parse_options
from plant_dist.data.files.sources import config_digest, named_sources
from plant_dist.data.files.standoff import Fit, parse_positions
from plant_dist.data.files.tables import open_text
from plant_dist.data.records import Document, Label, Span
from plant_dist.data.splits import named_split
from plant_dist.errors import ConfigError, DataError
from plant_dist.logs import get_logger

LABEL_FROM = ("note", "reference", "type")
# Relations, events, attributes, modifications, equivalences: no labels of a document.
_OTHER = tuple("REAM*")
_log = get_logger(__name__)


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    label_from: str = "note"
    types: list[str] | None = None
    within: str | None = None


def open(data: DataConfig) -> BratCorpus:
    """Open folders of texts and annotations.

    Raises:
        ConfigError: no path is set, or an option is unknown.
    """
    options = parse_options(Options, data.reader_options, "brat")
    if options.label_from not in LABEL_FROM:
        raise ConfigError(
            f"data.reader_options.label_from is {options.label_from!r}; it must be one of "
            f"{', '.join(LABEL_FROM)}"
        )
    return BratCorpus(data, options)


@dataclass
class _Annotation:
    """A span as its T line gives it, and the labels that other lines add."""

    kind: str
    fragments: list[tuple[int, int]]
    quoted: str
    where: str
    labels: list[str] = field(default_factory=list)


class BratCorpus:
    """Texts as documents; what annotators wrote at their spans as labels and evidence."""

    def __init__(self, data: DataConfig, options: Options) -> None:
        self._data, self._options = data, options
        self._folders = [(Path(path), split) for path, split in named_sources(data)]

    def describe(self) -> str:
        """Return the sources in one line."""
        folders = ", ".join(str(path) for path, _ in self._folders)
        return f"brat, labels from the {self._options.label_from}, {folders}"

    def fingerprint(self) -> str:
        """Return a hash of every folder that is read."""
        return config_digest(self._data)

    def labels(self) -> Iterator[Label]:
        """Stream the labels of `data.labels_path`; none where it is unset."""
        if self._data.labels_path is not None:
            table = replace(self._data, reader="generic", reader_options={})
            yield from open_corpus(table).labels()

    def documents(self) -> Iterator[Document]:
        """Stream the annotated texts by name; see `Corpus`."""
        fit, unlabelled = Fit(), 0
        for text_path, split in self._texts():
            text = _read(text_path, self._data.encoding)
            spans = []
            for one in self._annotations(text_path.with_suffix(".ann")):
                fit.check(text, one.fragments, one.quoted, one.where)
                unlabelled += not one.labels
                # A fragment each: what lies between them was passed over by the annotator.
                spans += [Span(label, *part) for label in one.labels for part in one.fragments]
            labels = tuple(dict.fromkeys(span.label for span in spans))
            yield Document(
                text_path.stem, text, labels, split, evidence=tuple(spans), where=str(text_path)
            )
        fit.report()
        if unlabelled:
            _log.warning(
                "%d spans have no %s and give no label; see data.reader_options.label_from",
                unlabelled, self._options.label_from,
            )  # fmt: skip

    def _texts(self) -> Iterator[tuple[Path, str | None]]:
        for folder, split in self._folders:
            if not folder.is_dir():
                raise DataError(f"folder {folder} does not exist; check data.path and its like")
            for path in sorted(folder.rglob("*.ann")):
                parts = path.relative_to(folder).parts[:-1]
                if self._options.within is None or self._options.within in parts:
                    yield path.with_suffix(".txt"), split or self._split_of(parts)

    def _split_of(self, folders: tuple[str, ...]) -> str | None:
        if self._data.split != "given":
            return None
        # Of `train-set` and `dev1`, the letters before anything else.
        words = (re.match("[A-Za-z]*", one) for one in folders)
        named = (named_split(word.group()) for word in words if word)
        return next((split for split in named if split), None)

    def _annotations(self, path: Path) -> list[_Annotation]:
        """Read the spans of one file, in its order, with their labels."""
        spans: dict[str, _Annotation] = {}
        added = []
        with open_text(path, self._data.encoding, newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                where, fields = f"{path}:{number}", line.rstrip("\r\n").split("\t")
                if line.startswith("T"):
                    spans[fields[0]] = self._span(fields, where)
                elif line.startswith(("#", "N")):
                    added.append((fields, where))
                elif line.strip() and not line.startswith(_OTHER):
                    raise DataError(f"{where}: found {line.strip()[:60]!r}, no annotation of brat")
        # Afterwards: a note may stand before the span that it speaks of.
        for fields, where in added:
            self._add_label(spans, fields, where)
        kinds = self._options.types
        return [one for one in spans.values() if kinds is None or one.kind in kinds]

    def _span(self, fields: list[str], where: str) -> _Annotation:
        if len(fields) != 3 or " " not in fields[1]:
            raise DataError(f"{where}: expected `T1<tab>type start end<tab>text`, found {fields!r}")
        kind, positions = fields[1].split(" ", 1)
        labels = [kind] if self._options.label_from == "type" else []
        return _Annotation(kind, parse_positions(positions, where), fields[2], where, labels)

    def _add_label(self, spans: dict[str, _Annotation], fields: list[str], where: str) -> None:
        note = fields[0].startswith("#")
        if self._options.label_from != ("note" if note else "reference"):
            return
        words = fields[1].split() if len(fields) == 3 else []
        # `AnnotatorNotes T1`, then the note; `Reference T1 ICD10:I10`, then the name.
        if len(words) != (2 if note else 3):
            raise DataError(f"{where}: found {fields!r}, no note or normalisation of brat")
        label = fields[2].strip() if note else words[2].partition(":")[2]
        # Notes may hang on relations and events as well; those are no spans.
        if label and words[1] in spans:
            spans[words[1]].labels.append(label)
        elif words[1].startswith("T"):
            what = "an empty label" if words[1] in spans else f"no span {words[1]}"
            raise DataError(f"{where}: {what} in {fields!r}; correct the file")


def _read(path: Path, encoding: str) -> str:
    if not path.is_file():
        raise DataError(f"annotations without their text: {path} does not exist")
    # Line ends untouched, since positions count them.
    with open_text(path, encoding, newline="") as stream:
        return stream.read()
