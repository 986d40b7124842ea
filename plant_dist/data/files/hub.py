"""Rows out of what the `datasets` library holds: a saved folder, a folder of files, a hub name.

The rule for names: what exists on disk is read from disk; anything else is the name of a dataset
on the hub and is fetched only where the configuration allows it. Must not know which columns
mean what.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plant_dist.data.files.tables import BATCH_ROWS, Row
from plant_dist.errors import DataError

# What `save_to_disk` leaves: the first for several splits, the second for one.
_SAVED = ("dataset_dict.json", "state.json")


def read_dataset(
    source: str, subset: str | None, allow_download: bool, revision: str | None = None
) -> Iterator[tuple[str | None, Row]]:
    """Stream (split name, row) of every split.

    Args:
        source: folder written by `save_to_disk`, folder of data files, or hub name.
        subset: the dataset's configuration, where it has several.
        allow_download: permit fetching a hub name.
        revision: branch of a hub name, such as `refs/convert/parquet`, where the hub keeps what
            once needed a loading script.

    Raises:
        DataError: nothing is there, a download is needed but not allowed, or `datasets` cannot
            read it.
    """
    splits = _open(source, subset, allow_download, revision)
    for name, dataset in splits.items():
        place = f"{source}[{name}]" if name else source
        for number, values in enumerate(_rows(dataset, source), 1):
            yield name, Row(f"{place} row {number}", values)


def _open(
    source: str, subset: str | None, allow_download: bool, revision: str | None
) -> dict[str | None, Any]:
    """Return the splits of a dataset; a saved folder without splits has the one name None."""
    # Imported here: it takes a second to load, and plain files do not need it.
    from datasets import Dataset, load_dataset, load_from_disk

    folder = Path(source)
    if not folder.exists() and not allow_download:
        raise DataError(
            f"{source!r} is neither a file nor a folder; to fetch it as a dataset from the hub "
            "set data.reader_options.allow_download: true"
        )
    try:
        if any((folder / mark).is_file() for mark in _SAVED):
            loaded = load_from_disk(source)
        else:
            loaded = load_dataset(source, subset, revision=revision)
    # The library raises a dozen kinds of errors, from its own, the hub's and pyarrow's.
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        hint = ""
        if folder.is_dir():
            hint = "; name a file in data.path, or the reader of the folder's files in data.reader"
        raise DataError(f"{source!r} cannot be read by `datasets`: {reason}{hint}") from error
    # A single dataset names no split; its rows may, in the split column.
    return {None: loaded} if isinstance(loaded, Dataset) else dict(loaded)


def _rows(dataset: Any, source: str) -> Iterator[dict[str, Any]]:
    # Imported here, as in `_open`: it imports `datasets`.
    from plant_dist.data.files.features import decode_classes

    # Arrow batches: the library's own row iteration decodes every feature of every row.
    for table in dataset.with_format("arrow").iter(BATCH_ROWS):
        yield from decode_classes(table, dataset.features.arrow_schema, source)
