"""Corpora that may be downloaded: which there are, and a folder that says what lies in it.

The registry `fetch.yaml` names every file with its checksum, licence and source; the record
`fetched.json` beside the files says what came, when and under which licence. A corpus that needs
credentials is refused with the way to get it. Must not know how a corpus is read.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from plant_dist.artifacts import write_json
from plant_dist.data.fetching.download import Patience, checksum, disk_error, download
from plant_dist.errors import ConfigError, DataError, RuntimeSetupError
from plant_dist.logs import get_logger

REGISTRY = Path(__file__).with_name("fetch.yaml")
RECORD = "fetched.json"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}")
_log = get_logger(__name__)


@dataclass(frozen=True)
class RemoteFile:
    """A file of a corpus: where it is, its name here, what it must be, whether it is an archive."""

    url: str
    name: str
    digest: str | None = None
    unpack: bool = False

    def __post_init__(self) -> None:
        if Path(self.name).name != self.name:
            raise ConfigError(f"name {self.name!r} is no plain file name")
        if self.digest is not None and not _DIGEST.fullmatch(self.digest):
            raise ConfigError(f"digest {self.digest!r} is neither sha256:… nor md5:…")


@dataclass(frozen=True)
class Entry:
    """A corpus of the registry; without files it is one to be obtained by hand."""

    title: str
    licence: str
    source: str
    files: tuple[RemoteFile, ...] = ()
    next: str = ""
    obtain: str = ""
    place: str = ""
    aliases: tuple[str, ...] = ()


def load_registry(path: Path = REGISTRY) -> dict[str, Entry]:
    """Read a registry.

    Raises:
        ConfigError: it is missing, or an entry is not as `fetch.yaml` describes.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"registry {path} cannot be read: {reason}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"registry {path} must map names of corpora to entries")
    try:
        return {str(name): _entry(values) for name, values in content.items()}
    except (ConfigError, TypeError, AttributeError) as error:
        raise ConfigError(f"registry {path}: {error}; see {REGISTRY.name} of the package") from None


def _entry(values: Mapping[str, Any]) -> Entry:
    known = {field.name for field in fields(Entry)}
    if unknown := set(values) - known:
        raise ConfigError(f"unknown field {min(unknown)!r} of {values.get('title', 'an entry')!r}")
    files = tuple(RemoteFile(**one) for one in values.get("files", ()))
    if not files and not values.get("obtain"):
        raise ConfigError(f"{values.get('title', 'an entry')!r} has neither files nor `obtain`")
    return Entry(**{**values, "files": files, "aliases": tuple(values.get("aliases", ()))})


def describe_registry(registry: Mapping[str, Entry]) -> str:
    """Return a line for each corpus: its name, whether it can be fetched, title and licence."""
    lines = []
    for name, entry in registry.items():
        how = "" if entry.files else " (not by this command; it says how)"
        lines.append(f"{name:<12} {entry.title}{how}\n{'':<12} licence: {entry.licence}")
    return "\n".join(lines)


def find_entry(name: str, registry: Mapping[str, Entry]) -> tuple[str, Entry]:
    """Return a corpus's own name and its entry.

    Raises:
        ConfigError: there is none of this name; the nearest is named.
        DataError: it may not be fetched; says how to get it and where to put it.
    """
    names = {alias: own for own, entry in registry.items() for alias in (own, *entry.aliases)}
    if name not in names:
        near = get_close_matches(name, names, n=1, cutoff=0.0)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no corpus {name!r}{hint} `plant-dist fetch` lists them")
    entry = registry[names[name]]
    if not entry.files:
        raise DataError(
            f"{name} ({entry.title}) is not fetched by this command. To get it: {entry.obtain} "
            f"({entry.source}). Then: {entry.place}. Licence: {entry.licence}"
        )
    return names[name], entry


def fetch(name: str, entry: Entry, folder: Path, patience: Patience) -> None:
    """Bring a corpus into a folder; files that are there already and right are not fetched again.

    Args:
        name: of the corpus, for the record.
        entry: what it consists of.
        folder: made if absent; the files, what is unpacked, and `fetched.json` go there.
        patience: how often to try.

    Raises:
        DataError: as `download`; or an archive is broken, or of two downloads of a file without a
            published checksum the second differs.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        recorded = _read_record(folder)
        _log.info("%s: %s", name, entry.title)
        _log.info("licence: %s; source: %s", entry.licence, entry.source)
        files = [_bring(one, folder, recorded.get(one.name), patience) for one in entry.files]
    except OSError as error:
        raise disk_error(error, folder) from None
    # Last: a folder without it is not complete.
    write_json(
        folder / RECORD,
        {
            "name": name, "title": entry.title, "licence": entry.licence, "source": entry.source,
            "fetched": datetime.now(UTC).isoformat(timespec="seconds"), "files": files,
        },
    )  # fmt: skip


def _bring(
    file: RemoteFile, folder: Path, recorded: Mapping[str, Any] | None, patience: Patience
) -> dict[str, Any]:
    """Download and unpack one file, and return its record."""
    path = folder / file.name
    # Where nobody publishes a checksum, that of the first download is the one to hold to.
    digest = file.digest or (recorded["sha256"] if recorded else None)
    if path.is_file() and digest and checksum(path, digest.partition(":")[0]) == digest:
        _log.info("%s is here already", file.name)
        fresh = False
    else:
        download(file.url, path, digest, patience)
        fresh = True
    if file.unpack and (fresh or recorded is None):
        _unpack(path, folder)
    found = checksum(path, "sha256")
    if digest is None:
        _log.warning(
            "%s: nobody publishes its checksum; %s is recorded in %s and held against later "
            "downloads into this folder", file.name, found, RECORD,
        )  # fmt: skip
    return {
        **asdict(file), "bytes": path.stat().st_size, "sha256": found,
        "checked_against": "registry" if file.digest else "record" if recorded else "nothing",
    }  # fmt: skip


def _read_record(folder: Path) -> dict[str, Mapping[str, Any]]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {one["name"]: {**one, "sha256": str(one["sha256"])} for one in content["files"]}
    except (ValueError, KeyError, TypeError):
        raise DataError(
            f"{path} is damaged; remove it, and the files will be checked anew"
        ) from None


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack an archive beside itself; nothing may land outside the folder.

    Raises:
        DataError: it is no archive, or is broken.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                # `extractall` strips roots and `..` from the names.
                packed.extractall(folder)
        else:
            _untar(archive, folder)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        raise DataError(
            f"{archive} cannot be unpacked: {error}; remove it, fetch it again"
        ) from None
    _log.info("%s unpacked in %s", archive.name, folder)


def _untar(archive: Path, folder: Path) -> None:
    if not hasattr(tarfile, "data_filter"):
        raise RuntimeSetupError(
            f"this Python cannot unpack safely (3.11.4 and newer can); unpack {archive} "
            f"in {folder} by hand"
        )
    with tarfile.open(archive) as packed:
        # Refuses names and links that lead out of the folder, devices and the like.
        packed.extractall(folder, filter="data")
