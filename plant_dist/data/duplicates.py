"""Texts that occur more than once, above all on both sides of a split.

Two texts are the same when they are equal after case folding and collapsing white space. They
are counted and named, never removed: what to do about them is the corpus owner's choice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from plant_dist.data.csr import Int8, Int64
from plant_dist.data.records import SPLITS

EXAMPLES = 5


def text_key(text: str) -> int:
    """Return 64 bits of the sha256 of a text, without regard to case and white space.

    At ten million texts the odds that any two different ones share a key are 3 in a million.
    """
    # `casefold` and not `lower`: ß and SS are one.
    normal = " ".join(text.casefold().split())
    return int.from_bytes(hashlib.sha256(normal.encode()).digest()[:8], "little")


def find_duplicates(
    keys: npt.NDArray[np.uint64], splits: Int8, identify: Callable[[int], str]
) -> dict[str, Any]:
    """Report repeated texts.

    Args:
        keys: (N,) the `text_key` of each document.
        splits: (N,) indices into `SPLITS`.
        identify: a row's document id; called for the examples only.

    Returns:
        `within`: per split, documents whose text came earlier in the same split; `across`: per
        pair of splits that share texts, the number of texts, of documents on each side, and
        example pairs of ids.
    """
    # One row a text, so that a text that comes ten times is one shared text and not ten.
    first = [_first_rows(keys, splits, code) for code in range(len(SPLITS))]
    # What is not the first of its text in the split is a repetition.
    within = {
        name: int((splits == code).sum()) - len(first[code][0]) for code, name in enumerate(SPLITS)
    }
    across = []
    for one, two in combinations(range(len(SPLITS)), 2):
        shared, places_one, places_two = np.intersect1d(
            first[one][0], first[two][0], assume_unique=True, return_indices=True
        )
        if len(shared):
            rows = zip(first[one][1][places_one], first[two][1][places_two], strict=True)
            pairs = [[identify(int(a)), identify(int(b))] for a, b in list(rows)[:EXAMPLES]]
            # A text may come several times on a side; both sizes of the overlap are of interest.
            copies = np.isin(keys, shared)
            across.append(
                {
                    "splits": [SPLITS[one], SPLITS[two]],
                    "texts": len(shared),
                    "documents": [int((copies & (splits == code)).sum()) for code in (one, two)],
                    "examples": pairs,
                }
            )
    return {"within": within, "across": across}


def _first_rows(
    keys: npt.NDArray[np.uint64], splits: Int8, code: int
) -> tuple[npt.NDArray[np.uint64], Int64]:
    """Return a split's distinct keys and the row where each comes first."""
    rows = np.flatnonzero(splits == code)
    distinct, places = np.unique(keys[rows], return_index=True)
    return distinct, rows[places]
