"""Splits by a hash of a name, which anyone who rebuilds a corpus finds again.

No seed and no list of ids: the name alone says its split, also in next year's release of the same
corpus. Must not know what the name stands for.
"""

from __future__ import annotations

import hashlib


def split_by_hash(name: str, train_percent: int, validation_percent: int) -> str:
    """Return a member of `SPLITS`: the name's MD5 as a number, modulo 100, against two bounds.

    Args:
        name: a document's id, or what must not cross a split.
        train_percent: share of names for training.
        validation_percent: share for validation; what is left over is for test.
    """
    # MD5 spreads evenly and is the same everywhere; nothing here is secret.
    digest = hashlib.md5(name.encode(), usedforsecurity=False).hexdigest()
    place = int(digest, 16) % 100
    if place < train_percent:
        return "train"
    return "validation" if place < train_percent + validation_percent else "test"
