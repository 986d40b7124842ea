"""What stands in a row's columns: names, labels, evidence.

Must not know where rows come from, nor splits.
"""

from __future__ import annotations

import json
from typing import Any

from plant_dist.config.schema import DataConfig
from plant_dist.data.files.tables import Row
from plant_dist.data.records import Label, Span
from plant_dist.errors import DataError


def name_of(value: Any, row: Row, column: str) -> str:
    """Return an id, group or label as a string; only strings and integers are names.

    Raises:
        DataError: it is anything else, or empty.
    """
    if isinstance(value, str) and value.strip():
        return value
    # True is an int in Python. A float is refused: 250.0 was 250.00 before a spreadsheet read it.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DataError(
        f"{row.where}: column {column!r} holds {value!r}, expected a name (a string, not empty)"
    )


def label_ids(value: Any, separator: str, row: Row, column: str) -> tuple[str, ...]:
    """Read a row's labels: a list, one name, or names in one string with a separator.

    Raises:
        DataError: a label is neither text nor an integer.
    """
    if value is None:
        return ()
    if isinstance(value, str):
        # White space around a delimited label is layout; inside a list it is part of the label.
        parts = (part.strip() for part in value.split(separator or None))
        return tuple(part for part in parts if part)
    several = value if isinstance(value, list) else [value]
    return tuple(name_of(one, row, column) for one in several)


def label_of(row: Row, data: DataConfig) -> Label:
    """Read a label from the columns that the configuration names.

    Raises:
        DataError: the row has no id, or an id or a parent is no name.
    """
    # Ids as strings throughout: read as numbers, ICD-9 codes lose their leading zeros.
    label = name_of(row.get(data.label_id_column, "data.label_id_column"), row, "id")
    parents = row.values.get(data.label_parent_column)
    if parents is None:  # a list of parents often stands in the plural
        parents = row.values.get(f"{data.label_parent_column}s")
    several = parents if isinstance(parents, list) else [parents]
    text = row.values.get(data.label_text_column)
    return Label(
        id=label,
        text=str(text) if text is not None else "",
        parents=tuple(name_of(one, row, "parent") for one in several if one not in (None, "")),
        where=row.where,
    )


def evidence_spans(value: Any, row: Row, column: str) -> tuple[Span, ...]:
    """Read evidence, a list of {label, start, end} or the JSON of one (in CSV).

    Raises:
        DataError: it is anything else.
    """
    try:
        spans = json.loads(value) if isinstance(value, str) and value else value or []
        return tuple(
            Span(name_of(one["label"], row, column), int(one["start"]), int(one["end"]))
            for one in spans
        )
    except (KeyError, TypeError, ValueError):
        raise DataError(
            f"{row.where}: column {column!r} holds {str(value)[:80]!r}, expected a list of "
            "{label, start, end}; name another column in data.evidence_column"
        ) from None
