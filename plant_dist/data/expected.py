"""Counts that the literature gives for a corpus, compared with those found.

A config states them, and `prepare` prints them beside its own and marks what differs:

    expected:
      source: Mullenbach et al. 2018, table 2
      train_documents: [47723, 47724]
      labels: 8922
      labels_per_document: 15.9

Where the literature disagrees with itself, a list holds what it says: any of them is met.

Names: `labels`; and of `documents`, `groups` (patients), `labels_per_document`,
`tokens_per_document`, `words_per_document` each alone (all splits together) and with `train_`,
`validation_` or `test_` before it. Per-document figures are means, tokens those of the tokenizer
before cutting, words what white space separates in the text as it was read. A whole number must be
met exactly; a fraction to the decimals it has. Splits are the corpus's own: where it has no
validation split, what training lends counts as training. Must not know any corpus.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from plant_dist.data.csr import Csr, Int64
from plant_dist.data.records import SPLITS
from plant_dist.errors import ConfigError

SOURCE = "source"
_QUANTITIES = (
    "documents", "groups", "labels_per_document", "tokens_per_document", "words_per_document",
)  # fmt: skip
NAMES = ("labels", *_QUANTITIES, *(f"{split}_{one}" for split in SPLITS for one in _QUANTITIES))
# Shown of every corpus, whether or not somebody has published them.
USUAL = (
    *(f"{split}_documents" for split in SPLITS), "labels", "labels_per_document",
    "tokens_per_document",
)  # fmt: skip
COLUMNS = ("count", "found", "literature", "")
DIFFERS = "DIFFERS"


@dataclass(frozen=True)
class Found:
    """What a corpus turned out to hold.

    Attributes:
        labels: label indices of each split's documents.
        tokens: (N,) tokens of each split's documents before cutting.
        label_count: size of the label space.
        groups: (N,) group of each split's documents.
        texts: returns the Arrow column of a split's texts; called only where words are asked for.
        lent: validation was taken from the corpus's training split.
    """

    labels: Mapping[str, Csr]
    tokens: Mapping[str, Int64]
    label_count: int
    groups: Mapping[str, npt.NDArray[np.uint64]]
    texts: Callable[[str], Any]
    lent: bool = False

    def parts(self, split: str | None) -> tuple[str, ...]:
        """Return the splits of ours that make up one of the corpus's; None means all of it."""
        if split is None:
            return SPLITS
        if not self.lent or split == "test":
            return (split,)
        return SPLITS[:2] if split == "train" else ()


def check_expected(expected: Mapping[str, Any]) -> None:
    """Check the mapping of `data.expected`.

    Raises:
        ConfigError: a name is unknown (the nearest is named), or a value is no number.
    """
    for name, value in expected.items():
        if name == SOURCE:
            continue
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), NAMES, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"unknown count data.expected.{name}; did you mean {near}? "
                f"Counts: {', '.join(NAMES)}"
            )
        several = _alternatives(value)
        if not several or any(isinstance(one, bool) or not isinstance(one, int | float)
                              for one in several):  # fmt: skip
            raise ConfigError(
                f"data.expected.{name} is {value!r}; give a number, or a list of them"
            )


def compare_counts(expected: Mapping[str, Any], found: Found) -> list[dict[str, Any]]:
    """Return what was expected beside what was found.

    Args:
        expected: the mapping of `data.expected`.
        found: what the corpus holds.

    Returns:
        In the order of the config, then the `USUAL` counts that it does not state: `count`,
        `expected` (None there; a number or a list), `found` (None where there is no document to
        take a mean of), `differs`, `source`.

    Raises:
        ConfigError: see `check_expected`.
    """
    check_expected(expected)
    stated = {name: wanted for name, wanted in expected.items() if name != SOURCE}
    source = str(expected.get(SOURCE, ""))
    lines = []
    for name in dict.fromkeys((*stated, *USUAL)):
        value, wanted = _found(name, found), stated.get(name)
        lines.append({"count": name, "expected": wanted, "found": value,
                      "differs": name in stated and _differs(wanted, value),
                      "source": source if name in stated else ""})  # fmt: skip
    return lines


def describe_count(line: Mapping[str, Any]) -> str:
    """Return one line of `compare_counts`, of a count that the config states, for a person."""
    name, found, wanted, differs = count_cells(line)
    verdict = f"{DIFFERS} from" if differs else "as in"
    return f"{name}: {found}, {verdict} {line['source'] or 'data.expected'}: {wanted}"


def count_cells(line: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """Return one line of `compare_counts` as the cells of a table of `COLUMNS`."""
    several = _alternatives(line["expected"]) if line["expected"] is not None else []
    # As exact as the figure beside it; a mean that nobody has printed, to two places.
    plain = 2 if line["count"].endswith("_per_document") else 0
    decimals = max((_decimals(one) for one in several), default=plain)
    found = "–" if line["found"] is None else f"{line['found']:,.{decimals}f}"
    wanted = " or ".join(f"{one:,.{_decimals(one)}f}" for one in several) or "–"
    return line["count"], found, wanted, DIFFERS if line["differs"] else ""


def _found(name: str, found: Found) -> float | None:
    if name == "labels":
        return found.label_count
    split = next((one for one in SPLITS if name.startswith(f"{one}_")), None)
    quantity = name if split is None else name.removeprefix(f"{split}_")
    splits = found.parts(split)
    documents = sum(found.labels[one].size for one in splits)
    if quantity == "documents":
        return documents
    if quantity == "groups":
        return len(np.unique(np.concatenate([found.groups[one] for one in splits])))
    if not documents:
        return None
    totals: dict[str, Callable[[str], int]] = {
        "labels_per_document": lambda one: len(found.labels[one].values),
        "tokens_per_document": lambda one: int(found.tokens[one].sum()),
        "words_per_document": lambda one: _words(found.texts(one)),
    }
    return sum(totals[quantity](one) for one in splits) / documents


def _words(texts: Any) -> int:
    # In Arrow's own code, a chunk at a time: no text becomes a Python object.
    return sum(pc.sum(pc.count_substring_regex(one, r"\S+")).as_py() or 0 for one in texts.chunks)


def _differs(wanted: Any, found: float | None) -> bool:
    return found is None or all(
        round(found, _decimals(one)) != one for one in _alternatives(wanted)
    )


def _alternatives(wanted: Any) -> list[Any]:
    return wanted if isinstance(wanted, list) else [wanted]


def _decimals(number: float) -> int:
    """Return the decimals that a figure is printed with: 15.9 has one, 47723 none."""
    return len(repr(number).partition(".")[2]) if isinstance(number, float) else 0
