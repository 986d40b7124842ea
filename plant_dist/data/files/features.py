"""Class numbers to class names, for tables that carry Hugging Face `ClassLabel` features.

Parquet files and saved datasets keep the names in the schema's metadata, the rows keep integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from datasets import ClassLabel, Features

from plant_dist.errors import DataError


def decode_classes(table: Any, schema: Any, source: str) -> Iterator[dict[str, Any]]:
    """Yield a table's rows with the integers of `ClassLabel` columns replaced by their names.

    Args:
        table: Arrow table or record batch.
        schema: Arrow schema whose metadata may hold the features.
        source: what the table came from, for the error.

    Raises:
        DataError: an integer has no name.
    """
    names = _class_names(Features.from_arrow_schema(schema))
    for row in table.to_pylist():
        for column, known in names.items():
            row[column] = _named(row[column], known, f"{source}: column {column!r}")
        yield row


def _class_names(features: Features) -> dict[str, list[str]]:
    """Return the names of each column that is a ClassLabel or a list of them."""
    found = {}
    for column, feature in features.items():
        # Every list type of `datasets` calls its element `feature`.
        inner = getattr(feature, "feature", feature)
        if isinstance(inner, ClassLabel):
            found[column] = list(inner.names)
    return found


def _named(value: Any, names: list[str], where: str) -> Any:
    if isinstance(value, list):
        return [_named(one, names, where) for one in value]
    if value is None:
        return None
    # -1 is how `datasets` writes an unknown class; Python would read it as the last one.
    if not 0 <= value < len(names):
        raise DataError(f"{where} holds class {value}, but has {len(names)} class names")
    return names[value]
