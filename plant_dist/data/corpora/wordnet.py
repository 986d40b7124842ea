"""WordNet's nouns as a corpus: a synset's gloss to the synsets above it.

Reads `data.noun` of a WordNet database (Debian's package `wordnet-base`, or Princeton's `dict`
folder); without `data.path` Debian's own place. Labels are a synset's hypernyms and theirs, up to
the root, but only those with `min_documents` to `max_documents` (default 1,000) synsets below: the
few above would say that a thing is a thing. A synset's id is `n` and its offset, which differs
from version to version, and says its split. Options (`data.reader_options`): those two. Must not
know how labels are indexed or text is tokenised.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.sources import sources_digest
from plant_dist.data.files.tables import open_text
from plant_dist.data.records import Document, Label
from plant_dist.data.splits import split_by_hash
from plant_dist.errors import ConfigError, DataError

DEBIAN_FOLDER = "/usr/share/wordnet"
FILE = "data.noun"
TRAIN_PERCENT, VALIDATION_PERCENT = 80, 5
# `@` is "is a kind of", `@i` "is an instance of": Everest is an instance of a mountain.
_UPWARD = ("@", "@i")


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    max_documents: int = 1000
    min_documents: int = 1


def open(data: DataConfig) -> WordnetCorpus:
    """Open a WordNet database.

    Raises:
        ConfigError: an option is unknown or impossible.
        DataError: there is no `data.noun`.
    """
    options = parse_options(Options, data.reader_options, "wordnet")
    if not 1 <= options.min_documents <= options.max_documents:
        raise ConfigError(
            f"data.reader_options.min_documents is {options.min_documents}; it must be 1 to "
            f"max_documents ({options.max_documents})"
        )
    return WordnetCorpus(_find_nouns(Path(data.path or DEBIAN_FOLDER)), data, options)


class _Synset(NamedTuple):
    """Words of one meaning, its gloss, the offsets of its direct hypernyms."""

    words: str
    gloss: str
    parents: tuple[str, ...]
    where: str


class WordnetCorpus:
    """Synsets as documents and, those that have others below them, as labels."""

    def __init__(self, path: Path, data: DataConfig, options: Options) -> None:
        self._path, self._data, self._options = path, data, options

    def describe(self) -> str:
        """Return the source and the bounds in one line."""
        low, high = self._options.min_documents, self._options.max_documents
        return f"wordnet, {self._path}, hypernyms with {low} to {high} synsets below"

    def fingerprint(self) -> str:
        """Return a hash of the database file."""
        return sources_digest([str(self._path)])

    def documents(self) -> Iterator[Document]:
        """Stream the synsets that have a label, by offset."""
        for offset, synset in self._synsets.items():
            labels = sorted(self._ancestors[offset] & self._kept)
            if labels:
                name = f"n{offset}"
                split = split_by_hash(name, TRAIN_PERCENT, VALIDATION_PERCENT)
                yield Document(
                    name, synset.gloss, tuple(f"n{one}" for one in labels), split,
                    where=synset.where,
                )  # fmt: skip

    def labels(self) -> Iterator[Label]:
        """Stream the labels by offset: words and gloss as text, direct hypernyms as parents."""
        for offset, synset in self._synsets.items():
            if offset in self._kept:
                parents = tuple(f"n{one}" for one in synset.parents)
                yield Label(f"n{offset}", f"{synset.words}: {synset.gloss}", parents)

    @cached_property
    def _synsets(self) -> dict[str, _Synset]:
        # The whole database: a gloss comes before or after those of its hypernyms. It is 15 MB.
        found = {}
        with open_text(self._path, self._data.encoding, newline="\n") as stream:
            for number, line in enumerate(stream, 1):
                # The licence stands at the head, in lines that begin with two spaces.
                if not line.startswith("  "):
                    where = f"{self._path}:{number}"
                    offset, synset = _parse(line, where)
                    found[offset] = synset
        for synset in found.values():
            for parent in synset.parents:
                if parent not in found:
                    raise DataError(f"{synset.where}: hypernym {parent} is not in the file")
        return found

    @cached_property
    def _ancestors(self) -> dict[str, frozenset[str]]:
        """Every synset's hypernyms, theirs and so on, without itself."""
        return {offset: self._above(offset) for offset in self._synsets}

    def _above(self, offset: str) -> frozenset[str]:
        found: set[str] = set()
        waiting = list(self._synsets[offset].parents)
        while waiting:
            one = waiting.pop()
            # A synset may be reached on several ways; editors have left circles, too.
            if one not in found:
                found.add(one)
                waiting.extend(self._synsets[one].parents)
        return frozenset(found - {offset})

    @cached_property
    def _kept(self) -> frozenset[str]:
        below = Counter(one for above in self._ancestors.values() for one in above)
        low, high = self._options.min_documents, self._options.max_documents
        return frozenset(one for one, count in below.items() if low <= count <= high)


def _find_nouns(place: Path) -> Path:
    """Return the file of nouns: `place` itself, or in it, or in its folder `dict`."""
    for path in (place, place / FILE, place / "dict" / FILE):
        if path.is_file():
            return path
    raise DataError(
        f"there is no {FILE} in {place}; run `apt-get install wordnet-base` or `plant-dist fetch "
        "wordnet`, or set data.path to the folder of a WordNet database"
    )


def _parse(line: str, where: str) -> tuple[str, _Synset]:
    """Read a line of the database (manual page wndb(5)): counts say how many fields follow."""
    head, bar, gloss = line.partition(" | ")
    fields = head.split()
    try:
        count = int(fields[3], 16)
        words = fields[4 : 4 + 2 * count : 2]
        rest = fields[4 + 2 * count :]
        pointers = [rest[start : start + 4] for start in range(1, 1 + 4 * int(rest[0]), 4)]
        parents = tuple(target for kind, target, _, _ in pointers if kind in _UPWARD)
    except (IndexError, ValueError):
        bar = ""
    if not bar:
        raise DataError(
            f"{where}: found {line[:60]!r}, which is no line of a WordNet database (wndb(5))"
        )
    text = ", ".join(word.replace("_", " ") for word in words)
    return fields[0], _Synset(text, gloss.strip(), parents, where)
