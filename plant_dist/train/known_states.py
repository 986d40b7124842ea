"""Which documents' states already lie in the folders of a cache: told by what they read.

Splits of other seeds, training subsets, corpora with texts in common and label texts read the same
documents again and again. Beside the states of a folder lies a table of hashes of what each
document reads; what another folder holds is copied. Must not know encoders.

N documents.
"""

from __future__ import annotations

from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from plant_dist.data.csr import Csr, Int64

DOCUMENTS = "documents.npy"
# 64 bits: of ten million documents two different ones agree with a chance of 3 in a million.
ENTRY = np.dtype([("document", "<u8"), ("first", "<u8"), ("start", "<i8")])
Hashes = NDArray[np.uint64]


class Known(NamedTuple):
    """Documents whose states a folder holds.

    Attributes:
        folder: name of the folder.
        rows: (n,) int64, which of the documents asked for.
        starts: (n,) int64, where their states begin there.
    """

    folder: str
    rows: Int64
    starts: Int64


def hashes_of(tokens: Csr) -> Hashes:
    """Return a hash of each document's token ids, (N,) uint64."""
    values = np.ascontiguousarray(tokens.values, np.int32)
    bounds = np.asarray(tokens.offsets).tolist()
    return np.fromiter(
        (
            int.from_bytes(blake2b(values[start:stop].data, digest_size=8).digest(), "little")
            for start, stop in pairwise(bounds)
        ),
        np.uint64,
        tokens.size,
    )


def write_documents(folder: Path, tokens: Csr, first_tokens: int, offsets: Int64) -> None:
    """Write the table of a folder of states.

    Args:
        first_tokens: tokens of its own that a document's first segment has at most.
        offsets: (N + 1,) where each document's states begin.
    """
    table = np.empty(tokens.size, ENTRY)
    table["document"], table["first"] = hashes_of(tokens), hashes_of(tokens.cut(first_tokens))
    table["start"] = offsets[:-1]
    np.save(folder / DOCUMENTS, table)


def known_documents(folders: list[Path], tokens: Csr, what: str) -> list[Known]:
    """Return which documents' states lie in which folders; each document once.

    Args:
        folders: of states of the same encoder, cut alike; some may have no table.
        tokens: the documents, or their first segments.
        what: `document`, or `first` for first segments alone.
    """
    found: list[Known] = []
    left = np.arange(tokens.size)
    wanted = hashes_of(tokens)
    for folder in folders:
        if not len(left) or not (folder / DOCUMENTS).is_file():
            continue
        table = np.load(folder / DOCUMENTS, mmap_mode="r")
        if not len(table):
            continue
        order = np.argsort(table[what], kind="stable")
        rising = table[what][order]
        place = np.searchsorted(rising, wanted[left]).clip(max=len(rising) - 1)
        there = rising[place] == wanted[left]
        if there.any():
            found.append(Known(folder.name, left[there], table["start"][order[place[there]]]))
            left = left[~there]
    return found
