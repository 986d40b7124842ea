"""Artifacts: folders that a stage writes whole or not at all, each with a manifest.

A manifest says what an artifact is (settings, hashes, the digests of its parents) and how it was
made (versions, git revision, seconds, peak memory). Its `digest` is the sha256 of the former, so
the same inputs give the same digest on any machine. This module knows no stage by name.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.metadata
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plant_dist.errors import ArtifactError, PlantError

MANIFEST = "manifest.json"
VERSIONED = ("plant-dist", "torch", "transformers", "accelerate", "datasets", "numpy", "scipy")


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, and how it was made.

    Attributes:
        stage: the stage that made it.
        settings: the settings its content depends on.
        parents: artifact name -> digest of each artifact it was made from.
        sources: names -> hashes of what it was read from besides its parents (files, weights).
        carries: names -> hashes of what must match elsewhere (tokenizer, label space).
        versions, git_revision, created, seconds, peak_memory_bytes: the circumstances.
    """

    stage: str
    settings: dict[str, Any]
    parents: dict[str, str]
    sources: dict[str, str] = field(default_factory=dict)
    carries: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    git_revision: str | None = None
    created: str = ""
    seconds: float = 0.0
    peak_memory_bytes: int = 0

    @property
    def digest(self) -> str:
        """Return the sha256 of stage, settings, parents, sources: what decides the content."""
        return digest_of([self.stage, self.settings, self.parents, self.sources])


def digest_of(value: Any) -> str:
    """Return the sha256 (hex) of a JSON-able value, keys sorted."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    total = hashlib.sha256()
    # In pieces, because weights may be larger than memory; `hashlib.file_digest` is of 3.11. Large
    # ones, since a thread beside a training waits for Python's lock after each.
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 24):
            total.update(chunk)
    return total.hexdigest()


def read_manifest(folder: Path) -> Manifest | None:
    """Return an artifact's manifest, or None where there is no artifact.

    Raises:
        ArtifactError: there is a manifest, and it cannot be read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Written for people; the digest that counts is computed from the content.
        content.pop("digest", None)
        return Manifest(**content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); remove the folder and run its stage again"
        ) from None


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `folder` when the block ends without error.

    The files are flushed to disk before the rename, so that a process killed at any moment leaves
    the old artifact, or none, and never half of one. What earlier killed processes left behind is
    removed.

    Raises:
        ArtifactError: the disk is full or the place cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for stale in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        # Beside its target: a rename is atomic only within one file system.
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial",
                                      dir=folder.parent))  # fmt: skip
    except OSError as error:
        raise ArtifactError(f"{folder.parent} cannot be written: {error.strerror}") from None
    try:
        yield fresh
        # `mkdtemp` is private to its owner; a colleague should be able to read the artifact.
        _permit(fresh)
        _flush(fresh)
        _replace(folder, fresh)
    except Exception as error:
        if not disk_is_full(error, fresh):
            raise
        raise ArtifactError(
            f"no space left on disk while writing {folder}; nothing was changed: free some "
            "space, or name another place with --output"
        ) from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Say whether an error came of a full disk.

    NumPy and safetensors raise errors of their own without a number when a write falls short; so
    the disk of `folder`, where the unfinished files still lie, is asked too.
    """
    # Our own errors already say what is wrong, whatever the state of the disk.
    if isinstance(error, PlantError):
        return False
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return shutil.disk_usage(folder).free < _LITTLE_SPACE


_LITTLE_SPACE = 1 << 16  # bytes; a file system keeps some blocks it cannot give


def _permit(folder: Path) -> None:
    """Give everything the rights that the user's umask gives; some writers keep files private."""
    # It can only be read by setting it.
    umask = os.umask(0)
    os.umask(umask)
    for path in (*folder.rglob("*"), folder):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~umask)


def _flush(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        flush_to_disk(path)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _replace(folder: Path, fresh: Path) -> None:
    # A folder with files cannot be renamed over: the old one steps aside first.
    aside = fresh.with_suffix(".old.partial")
    if folder.exists():
        folder.rename(aside)
    try:
        fresh.rename(folder)
    except OSError:
        if aside.exists():
            aside.rename(folder)
        raise
    # The rename itself is an entry of the parent folder.
    flush_to_disk(folder.parent)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def written_artifact(folder: Path, manifest: Manifest) -> Iterator[Path]:
    """As `written_whole`, adding the manifest with the circumstances filled in.

    The block may fill `manifest.carries`, whose hashes are known only once the content is.
    """
    # Unlike the wall clock it never jumps.
    began = time.monotonic()
    with written_whole(folder) as fresh:
        yield fresh
        # Inside, so that the manifest is written, flushed and renamed with what it describes.
        seconds = time.monotonic() - began
        write_json(fresh / MANIFEST, _completed(manifest, seconds))


def _completed(manifest: Manifest, seconds: float) -> Mapping[str, Any]:
    content = asdict(manifest)
    content.update(
        digest=manifest.digest,
        versions=installed_versions(),
        git_revision=git_revision(),
        created=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        seconds=round(seconds, 3),
        peak_memory_bytes=peak_memory_bytes(),
    )
    return content


def write_json(path: Path, content: Any) -> None:
    """Write JSON as UTF-8, indented, with a final newline."""
    text = json.dumps(content, indent=2, ensure_ascii=False, sort_keys=False)
    path.write_text(text + "\n", encoding="utf-8")


def require_parent(child: Manifest, name: str, parent: Manifest, repair: str) -> None:
    """Check that an artifact was made from the parent that lies beside it.

    Raises:
        ArtifactError: it was made from another; names both digests and the command that repairs.
    """
    recorded = child.parents.get(name)
    if recorded != parent.digest:
        raise ArtifactError(
            f"the {child.stage} artifact was made from {name} {short(recorded)}, but the {name} "
            f"beside it is {short(parent.digest)}; run: {repair}"
        )


def require_content(kind: str, expected: str, found: str, where: str, repair: str) -> None:
    """Check that a tokenizer or label space is the one an artifact was made with.

    Raises:
        ArtifactError: the hashes differ; names both and the command that repairs it.
    """
    if expected != found:
        raise ArtifactError(
            f"{where} was made with {kind} {short(expected)}, found {kind} {short(found)}; "
            f"run: {repair}"
        )


def short(digest: str | None) -> str:
    """Return the first 12 characters of a digest, enough to tell two apart."""
    return digest[:12] if digest else "(none)"


def installed_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    found = {}
    for name in VERSIONED:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def git_revision() -> str | None:
    """Return the source tree's commit, with `-dirty` when it has changes; None outside one."""
    here = Path(__file__).resolve().parent
    try:
        answer = subprocess.run(
            # At the package: the working directory may be the user's own project.
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        # ru_maxrss survives exec, so that a small child of a large parent would look large.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    # The same field counts bytes on macOS and KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
