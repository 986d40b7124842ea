"""Debian's package index as a corpus: descriptions with their debtags, or with what they depend on.

Reads `Packages` files, what `apt-cache show` and `apt-cache dumpavail` print, or a folder of apt's
lists, which is the default, so that any Debian or Ubuntu machine has the corpus already. Long
descriptions stand in the stanza itself or in a `Translation-en` file. Packages of one source
resemble each other: the source is the group, and its name says the split. Options
(`data.reader_options`): `labels` is `tags` or `depends`; `translations` is the translation file,
where `data.path` is no folder. `data.labels_path` may name the vocabulary of debtags. Must not
know how labels are indexed or text is tokenised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from plant_dist.config.schema import DataConfig
from plant_dist.data.corpora import parse_options
from plant_dist.data.files.sources import sources_digest
from plant_dist.data.files.stanzas import Stanza, flat_text, read_stanzas
from plant_dist.data.records import Document, Label
from plant_dist.data.splits import split_by_hash
from plant_dist.errors import ConfigError, DataError
from plant_dist.logs import get_logger

# Where apt keeps its lists, and what their names end in (compressed or not).
APT_LISTS = "/var/lib/apt/lists"
_INDEX, _TRANSLATION = "*Packages*", "*Translation-en*"
TRAIN_PERCENT, VALIDATION_PERCENT = 75, 7
_DEPENDENCIES = ("Pre-Depends", "Depends", "Recommends")
# A name ends at a version, an architecture, a build profile or a space.
_NAME = re.compile(r"[^\s(\[<:]+")
_log = get_logger(__name__)


@dataclass(frozen=True)
class Options:
    """What `data.reader_options` may hold for this reader."""

    labels: str = "tags"
    translations: str | None = None


def open(data: DataConfig) -> DebianCorpus:
    """Open a package index.

    Raises:
        ConfigError: an option is unknown.
        DataError: a folder holds no package index.
    """
    options = parse_options(Options, data.reader_options, "debian")
    if options.labels not in ("tags", "depends"):
        raise ConfigError(
            f"data.reader_options.labels is {options.labels!r}; it must be tags or depends"
        )
    return DebianCorpus(data, options)


class _Package(NamedTuple):
    """One binary package; `source` is what it was built from, `short` lacks a long description."""

    name: str
    source: str
    text: str
    short: bool
    labels: tuple[str, ...]
    where: str


class DebianCorpus:
    """Packages as documents; debtags or packages as labels."""

    def __init__(self, data: DataConfig, options: Options) -> None:
        self._data, self._options = data, options
        place = Path(data.path or APT_LISTS)
        in_folder = place.is_dir()
        self._indices = _largest_first(place.glob(_INDEX)) if in_folder else [place]
        if not self._indices:
            raise DataError(
                f"folder {place} holds no list of packages; run "
                "`apt-get update -o Acquire::Languages=en`, or set data.path to a Packages file"
            )
        given = options.translations
        self._translations = (
            [Path(given)] if given else sorted(place.glob(_TRANSLATION)) if in_folder else []
        )

    def describe(self) -> str:
        """Return the sources in one line."""
        files = ", ".join(path.name for path in self._indices)
        return f"debian, descriptions to {self._options.labels}, {self._indices[0].parent}: {files}"

    def fingerprint(self) -> str:
        """Return a hash of every file that is read."""
        names = [self._data.labels_path] if self._data.labels_path else []
        return sources_digest([*map(str, self._indices + self._translations), *names])

    def documents(self) -> Iterator[Document]:
        """Stream the packages that have a label, in the order of the index."""
        short = 0
        for package in self._packages():
            if not package.labels:
                continue
            short += package.short
            split = split_by_hash(package.source, TRAIN_PERCENT, VALIDATION_PERCENT)
            yield Document(
                package.name, package.text, package.labels, split, package.source,
                where=package.where,
            )  # fmt: skip
        if short:
            _log.warning(
                "%d packages have no long description; run `apt-get update -o "
                "Acquire::Languages=en` and read apt's lists, or name the Translation-en file in "
                "data.reader_options.translations", short,
            )  # fmt: skip

    def labels(self) -> Iterator[Label]:
        """Stream the labels of the documents, by name; packages carry their own description."""
        tags = self._options.labels == "tags"
        texts = self._vocabulary() if tags else {}
        used: set[str] = set()
        for package in self._packages():
            used.update(package.labels)
            if not tags:
                texts.setdefault(package.name, package.text)
        for name in sorted(used):
            # A virtual package, or one of another release, has no description: its name stays.
            yield Label(name, texts.get(name) or name.replace("::", " "))

    def _packages(self) -> Iterator[_Package]:
        seen: set[str] = set()
        read = self._tags if self._options.labels == "tags" else self._dependencies
        for path in self._indices:
            for stanza in read_stanzas(path, self._data.encoding):
                name = _required(stanza, "Package")
                # A second stanza is another version or architecture of the same package; of these
                # the first that carries labels counts, since updates come without debtags.
                if name in seen:
                    continue
                labels = read(stanza)
                if labels:
                    seen.add(name)
                # Of a source with another version: `Source: name (version)`.
                source = (stanza.fields.get("Source") or name).split()[0]
                text, short = self._text(stanza)
                yield _Package(name, source, text, short, labels, stanza.where)

    def _text(self, stanza: Stanza) -> tuple[str, bool]:
        """Return the whole description as one line of text, and whether it is a synopsis only."""
        own = stanza.fields.get("Description-en") or _required(stanza, "Description")
        if "\n" in own:
            return flat_text(own), False
        key = (stanza.fields["Package"], stanza.fields.get("Description-md5", ""))
        translated = self._long_descriptions.get(key)
        return flat_text(translated or own), translated is None

    @cached_property
    def _long_descriptions(self) -> dict[tuple[str, str], str]:
        found = {}
        for path in self._translations:
            for stanza in read_stanzas(path, self._data.encoding):
                key = (_required(stanza, "Package"), _required(stanza, "Description-md5"))
                found[key] = _required(stanza, "Description-en")
        return found

    def _tags(self, stanza: Stanza) -> tuple[str, ...]:
        tags = (tag.strip() for tag in stanza.fields.get("Tag", "").split(","))
        # `facet::TODO` says that nobody has looked yet.
        return tuple(sorted({tag for tag in tags if tag and not tag.endswith("::TODO")}))

    def _dependencies(self, stanza: Stanza) -> tuple[str, ...]:
        clauses = ",".join(stanza.fields.get(field, "") for field in _DEPENDENCIES).split(",")
        # Of alternatives (`a | b`) the first is the maintainer's choice.
        names = {found.group() for clause in clauses if (found := _NAME.match(clause.strip()))}
        return tuple(sorted(names - {stanza.fields["Package"]}))

    def _vocabulary(self) -> dict[str, str]:
        if self._data.labels_path is None:
            return {}
        stanzas = read_stanzas(Path(self._data.labels_path), self._data.encoding)
        # The vocabulary describes facets as well, which are no labels.
        return {
            stanza.fields["Tag"]: flat_text(_required(stanza, "Description"))
            for stanza in stanzas
            if "Tag" in stanza.fields
        }


def _largest_first(paths: Iterable[Path]) -> list[Path]:
    # A release before its updates, so that its own text of a package counts.
    return sorted(paths, key=lambda path: (-path.stat().st_size, path.name))


def _required(stanza: Stanza, field: str) -> str:
    value = stanza.fields.get(field)
    if not value:
        found = ", ".join(stanza.fields)
        raise DataError(f"{stanza.where}: no field {field!r}; fields found: {found}")
    return value
