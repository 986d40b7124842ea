"""Files that may be compressed, as plain bytes: the suffix says how.

Corpora travel gzipped, Debian's indices as xz, its machines' own copies as lz4. Must not know what
the bytes mean.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

KINDS = {".gz": "gzip", ".xz": "xz", ".bz2": "bzip2", ".lz4": "lz4"}
# What the libraries raise at a file that is cut short or was never compressed. Arrow, which reads
# lz4, raises an OSError without a number instead.
BROKEN = (gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


def open_bytes(path: Path) -> BinaryIO:
    """Open a file for reading; what is compressed is unpacked on the way.

    Args:
        path: `.gz`, `.xz`, `.bz2` and `.lz4` (frames) are known; anything else is read as it is.

    Raises:
        OSError: it cannot be opened. While reading: also one of `BROKEN`.
    """
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if suffix == ".bz2":
        return cast(BinaryIO, bz2.open(path, "rb"))
    if suffix == ".lz4":
        # Python has no lz4 of its own; Arrow, which is here anyway, has.
        return cast(BinaryIO, pa.input_stream(str(path), compression="lz4"))
    return path.open("rb")


def compression(path: Path) -> str:
    """Return the name of a file's compression, for errors."""
    return KINDS.get(path.suffix.lower(), "plain")
