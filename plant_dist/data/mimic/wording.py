"""Text normalisations of the literature on MIMIC: `caml`, `replication`, `none`."""

from __future__ import annotations

import re
from collections.abc import Callable

_WORDS = re.compile(r"\w+")
_NOT_ALPHANUMERIC = re.compile(r"[^a-z0-9]+")


def caml(text: str) -> str:
    """Return lower-case words that hold a letter (Mullenbach et al. 2018, section 3.1)."""
    return " ".join(
        word for word in _WORDS.findall(text.lower()) if any(one.isalpha() for one in word)
    )


def replication(text: str) -> str:
    """Return lower-case a-z and 0-9, without tokens of digits alone (Edin et al. 2023)."""
    words = _NOT_ALPHANUMERIC.sub(" ", text.lower()).split()
    return " ".join(word for word in words if not word.isdigit())


def none(text: str) -> str:
    """Return the text as it is."""
    return text


NORMALISATIONS: dict[str, Callable[[str], str]] = {
    "none": none,
    "caml": caml,
    "replication": replication,
}
