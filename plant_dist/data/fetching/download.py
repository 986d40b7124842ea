"""One file over HTTP to disk: resumed where it broke off, checked before it counts.

While it is incomplete a file has the suffix `.partial`, beside which the server's validator is
kept, so that the rest is asked for only of the same content (`If-Range`). HTTP itself is
`requests`. Must not know what is fetched, or why.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from plant_dist.artifacts import flush_to_disk
from plant_dist.errors import DataError
from plant_dist.logs import get_logger, progress_bar

if TYPE_CHECKING:
    import requests

# When a line breaks, `requests` drops what it had of the piece it was reading.
CHUNK_BYTES = 1 << 14
# A file may grow no further: the disk, the quota or the process's own limit (EFBIG) is reached.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_log = get_logger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a download is tried.

    Attributes:
        timeout_seconds: longest silence of the server.
        attempts: tries in a row that bring no byte further.
        pause_seconds: before the second try; doubled for each one after it.
    """

    timeout_seconds: float = 60.0
    attempts: int = 5
    pause_seconds: float = 1.0


class _Broken(Exception):
    """The connection or the server failed; another try may go on."""


def download(url: str, path: Path, digest: str | None, patience: Patience) -> None:
    """Fetch a file, going on where an earlier call left off.

    Args:
        url: of the file.
        path: where it will be; it appears there only whole and checked.
        digest: `sha256:…` or `md5:…`, what the file must be; None checks its length only.
        patience: how often to try.

    Raises:
        DataError: the server refuses, the connection stays broken, the disk is full (what came
            stays for the next call), or the checksum is another (what came is removed).
    """
    partial = path.with_name(path.name + ".partial")
    failures, pause = 0, patience.pause_seconds
    while True:
        before = _size(partial)
        try:
            # A checksum would show it if the parts were of two files.
            _continue(url, partial, digest is not None, patience.timeout_seconds)
            break
        except _Broken as broken:
            # Bytes that came are progress, however often the connection breaks.
            failures = 1 if _size(partial) > before else failures + 1
            if failures >= patience.attempts:
                raise DataError(
                    f"{url} broke off after {_size(partial)} bytes ({broken}); they are kept in "
                    f"{partial}: run the same command again to go on"
                ) from None
            _log.warning("%s; going on at byte %d", broken, _size(partial))
            time.sleep(pause if failures > 1 else 0)
            pause = pause * 2 if failures > 1 else patience.pause_seconds
        except OSError as error:
            raise disk_error(error, partial) from None
    _check(url, partial, digest)
    flush_to_disk(partial)
    os.replace(partial, path)
    _validator_file(partial).unlink(missing_ok=True)


def checksum(path: Path, algorithm: str) -> str:
    """Return a file's checksum as `sha256:…` or `md5:…`."""
    total = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            total.update(chunk)
    return f"{algorithm}:{total.hexdigest()}"


def _continue(url: str, partial: Path, resumable: bool, timeout_seconds: float) -> None:
    """Ask for what is missing and append it."""
    # Imported here: only this command needs it.
    import requests

    # Not gzipped on the way: sizes and positions are those of the file.
    headers = {"Accept-Encoding": "identity"}
    have, validator = _size(partial), _read_validator(partial)
    if have and (validator or resumable):
        headers["Range"] = f"bytes={have}-"
        if validator:
            headers["If-Range"] = validator
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout_seconds) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable:
                _accept_or_drop(partial, response)
                return
            _refuse_failure(response)
            _append(response, partial, have)
    # Before OSError, of which it is one: the disk is not to blame.
    except requests.RequestException as error:
        raise _Broken(f"connection to {url} failed: {type(error).__name__}") from None


def _append(response: requests.Response, partial: Path, have: int) -> None:
    """Write a response's body behind what is there, or anew where the server starts anew."""
    going_on = response.status_code == _PARTIAL_CONTENT
    start, total = _extent(response)
    if start != (have if going_on else 0):
        partial.unlink()
        raise _Broken(f"the server sent byte {start} for byte {have}")
    _require_space(partial, start, total)
    _validator_file(partial).write_text(_validator(response), encoding="utf-8")
    name = partial.name.removesuffix(".partial")
    with partial.open("ab" if going_on else "wb") as out:
        with progress_bar(name, "bytes", total) as bar:
            bar.update(start)
            for chunk in response.iter_content(CHUNK_BYTES):
                out.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(partial) != total:
        raise _Broken(f"the server closed after {_size(partial)} of {total} bytes")


_PARTIAL_CONTENT = 206  # the range that was asked for, and not the whole (RFC 9110)


def _extent(response: requests.Response) -> tuple[int, int | None]:
    """Return the first byte that a response holds, and the size of the whole file if known."""
    said = re.fullmatch(
        r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip()
    )
    if response.status_code == _PARTIAL_CONTENT and said:
        return int(said[1]), None if said[2] == "*" else int(said[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _accept_or_drop(partial: Path, response: requests.Response) -> None:
    """The server has no such range: all is here already, or what is here is of another file."""
    if response.headers.get("Content-Range", "") != f"bytes */{_size(partial)}":
        partial.unlink()
        raise _Broken("the file at the server is another by now; starting anew")


def _refuse_failure(response: requests.Response) -> None:
    code, reason = response.status_code, response.reason
    # Too many requests, or trouble of the server's own: later it may be well.
    if code == 429 or code >= 500:
        raise _Broken(f"the server answered {code} {reason}")
    if code >= 400:
        raise DataError(
            f"{response.url} answered {code} {reason}; the file may have moved: see the source "
            "that `plant-dist fetch` shows, and name its place in a registry of your own "
            "(--registry)"
        )


def _validator(response: requests.Response) -> str:
    """Return what `If-Range` may name: a strong entity tag, or the date; else nothing."""
    tag = response.headers.get("ETag", "")
    # A weak tag allows other bytes (RFC 9110).
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator_file(partial: Path) -> Path:
    return partial.with_name(partial.name + ".validator")


def _read_validator(partial: Path) -> str:
    path = _validator_file(partial)
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _require_space(partial: Path, start: int, total: int | None) -> None:
    free = shutil.disk_usage(partial.parent).free
    if total is not None and total - start > free:
        raise DataError(
            f"{partial.parent} has {free} bytes free, {partial.name.removesuffix('.partial')} "
            f"needs {total - start} more; free some space, or name another place with --output"
        )


def disk_error(error: OSError, path: Path) -> DataError:
    """Return what a failed write means to the user."""
    if error.errno in _FULL:
        return DataError(
            f"no space left on disk while writing {path}; what came is kept: free some space and "
            "run the same command again to go on, or name another place with --output"
        )
    return DataError(f"{path} cannot be written: {error.strerror or error}")


def _check(url: str, partial: Path, digest: str | None) -> None:
    if digest is None:
        return
    found = checksum(partial, digest.partition(":")[0])
    if found != digest:
        partial.unlink()
        raise DataError(
            f"{url} has checksum {found}, expected {digest}; what came is removed: run the same "
            "command again, and if it is so again the publisher has changed the file"
        )
