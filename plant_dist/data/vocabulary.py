"""The label space: every label's stable index, id, text, parents and training frequency.

One Arrow table, memory-mapped from disk, so that millions of labels cost one dictionary (built
at the first look-up) and no other Python object. Must not know how documents are split or read.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from plant_dist.data.csr import Csr, Int32, Int64
from plant_dist.data.records import Label
from plant_dist.errors import ArtifactError, DataError

T = TypeVar("T")
FILE = "labels.arrow"
CHUNK = 65_536
COMPARED = 100_000  # labels that a misspelt one is compared with, in some seconds
# 64-bit offsets: the texts of some millions of labels pass the 2 GiB of Arrow's short strings.
SCHEMA = pa.schema(
    [
        ("id", pa.large_string()),
        ("text", pa.large_string()),
        ("parents", pa.large_list(pa.large_string())),
        ("train_frequency", pa.int64()),
    ]
)


class ArrowSequence(Sequence[T]):
    """An Arrow column read as a Python sequence; a value becomes an object when it is asked for."""

    def __init__(self, column: Any) -> None:
        self._column = column

    def __len__(self) -> int:
        return len(self._column)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            piece: list[T] = self._column[index].to_pylist()
            return piece
        one: T = self._column[int(index)].as_py()
        return one

    def __iter__(self) -> Iterator[T]:
        # By chunks, because one `as_py` a value is ten times slower.
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]


class LabelSpace:
    """Labels in a stable order, an index each."""

    def __init__(self, table: Any) -> None:
        """Wrap an Arrow table of `SCHEMA`; use `create` or `load`."""
        self._table = table

    @classmethod
    def create(cls, labels: Iterable[Label]) -> LabelSpace:
        """Build a label space in the order given; frequencies are 0 until `with_frequency`.

        Args:
            labels: a label's empty text becomes its id.

        Raises:
            DataError: an id comes twice, or is empty.
        """
        index: dict[str, int] = {}
        chunks = [_chunk(some, index) for some in _batched(labels)]
        # One chunk: a look-up by index then costs no search, and a load copies nothing.
        space = cls(pa.Table.from_batches(chunks, SCHEMA).combine_chunks())
        # The check for repeated ids has already built the dictionary; no need to do it twice.
        space._positions = index
        return space

    def extended(self, found: Collection[str]) -> LabelSpace:
        """Return this space and, after its labels, those of the given ids that it lacks, sorted.

        So a label that only documents mention is not lost, and no index depends on their order.
        """
        extra = sorted({label for label in found if label not in self._positions})
        added = LabelSpace.create(Label(one, one) for one in extra)
        return LabelSpace(pa.concat_tables([self._table, added._table]).combine_chunks())

    @classmethod
    def load(cls, folder: Path) -> LabelSpace:
        """Memory-map what `save` wrote.

        Raises:
            ArtifactError: the file is missing, truncated or not a label space.
        """
        path = folder / FILE
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (OSError, pa.ArrowInvalid) as error:
            reason = str(error).splitlines()[0]
            raise ArtifactError(f"label space {path} cannot be read: {reason}") from None
        # An Arrow file of anything else opens just as well.
        if table.schema != SCHEMA:
            raise ArtifactError(
                f"{path} has columns {', '.join(table.schema.names)}, not those of a label space "
                f"({', '.join(SCHEMA.names)}); run `plant-dist prepare` again"
            )
        return cls(table)

    def save(self, folder: Path) -> None:
        """Write the label space into a folder, as one Arrow file."""
        folder.mkdir(parents=True, exist_ok=True)
        with pa.ipc.new_file(str(folder / FILE), SCHEMA) as writer:
            writer.write_table(self._table)

    def with_frequency(self, train_frequency: Int64) -> LabelSpace:
        """Return the same labels with (L,) counts of training documents.

        Raises:
            DataError: there is not one count a label.
        """
        if len(train_frequency) != len(self):
            raise DataError(f"{len(train_frequency)} frequencies were given for {len(self)} labels")
        place = SCHEMA.get_field_index("train_frequency")
        # Arrow tables do not change: the texts are shared, one column is new.
        column = pa.array(train_frequency, pa.int64())
        return LabelSpace(self._table.set_column(place, SCHEMA.field(place), column))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def ids(self) -> Sequence[str]:
        """Label ids by index."""
        return ArrowSequence(self._table.column("id"))

    @cached_property
    def texts(self) -> Sequence[str]:
        """Names or descriptions by index; the id where the corpus gives none."""
        return ArrowSequence(self._table.column("text"))

    @property
    def nameless(self) -> npt.NDArray[np.bool_]:
        """(L,) bool: labels whose only text is their id."""
        same = pc.equal(self._table.column("id"), self._table.column("text"))
        found: npt.NDArray[np.bool_] = same.to_numpy()
        return found

    @cached_property
    def parents(self) -> Sequence[list[str]]:
        """Parent ids by index, also those that are no label themselves."""
        return ArrowSequence(self._table.column("parents"))

    @cached_property
    def train_frequency(self) -> Int64:
        """(L,) int64: training documents that carry each label."""
        frequency: Int64 = self._table.column("train_frequency").to_numpy()
        return frequency

    @cached_property
    def digest(self) -> str:
        """sha256 over the ids in order, each preceded by its length in bytes."""
        digest = hashlib.sha256()
        for label in self.ids:
            # The length keeps ["ab", "c"] apart from ["a", "bc"].
            encoded = label.encode()
            digest.update(len(encoded).to_bytes(8, "little"))
            digest.update(encoded)
        return digest.hexdigest()

    def index(self, label: str) -> int:
        """Return a label's index.

        Raises:
            DataError: there is no such label.
        """
        place = self._positions.get(label)
        if place is None:
            near = self._nearest(label)
            hint = "" if near is None else f"; did you mean {near!r}?"
            raise DataError(
                f"label {label!r} is not among the {len(self)} of the label space{hint}"
            )
        return place

    def _nearest(self, label: str) -> str | None:
        # Codes are misspelt in case and points first of all.
        same = (one for one in self._positions if _folded(one) == _folded(label))
        near = next(same, None)
        if near is None and len(self) <= COMPARED:
            near = next(iter(difflib.get_close_matches(label, self._positions, n=1)), None)
        return near

    def indices(self, labels: Collection[str]) -> Int32:
        """Return (n,) int32, the index of each id; -1 where it is no label."""
        positions = self._positions
        return np.fromiter((positions.get(one, -1) for one in labels), np.int32, len(labels))

    def parent_csr(self) -> Csr:
        """Return row l = indices of l's parents, without parents that are no labels."""
        column = self._table.column("parents").combine_chunks()
        ids = self._table.column("id").combine_chunks()
        places = pc.index_in(pc.list_flatten(column), value_set=ids)
        # A parent outside the label space (too rare, too general) is kept as text, not as index.
        known = places.is_valid().to_numpy(zero_copy_only=False)
        owners = pc.list_parent_indices(column).to_numpy()[known]
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(owners, minlength=len(self)), out=offsets[1:])
        return Csr(offsets, places.drop_null().to_numpy().astype(np.int32))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {label: place for place, label in enumerate(self.ids)}


def _batched(labels: Iterable[Label]) -> Iterator[list[Label]]:
    stream = iter(labels)
    while some := list(islice(stream, CHUNK)):
        yield some


def _chunk(labels: list[Label], index: dict[str, int]) -> Any:
    """Turn labels into an Arrow batch and enter their ids into `index`."""
    for label in labels:
        if not label.id:
            raise DataError(
                f"{_place(label)}label number {len(index) + 1} has an empty id; give it one"
            )
        if label.id in index:
            raise DataError(
                f"{_place(label)}label {label.id!r} is declared twice, as number "
                f"{index[label.id] + 1} and number {len(index) + 1}; keep one"
            )
        index[label.id] = len(index)
    columns = [
        [label.id for label in labels],
        [label.text or label.id for label in labels],
        [list(label.parents) for label in labels],
        [0] * len(labels),
    ]
    try:
        arrays = [pa.array(one, field.type) for one, field in zip(columns, SCHEMA, strict=True)]
    except UnicodeEncodeError:
        # JSON can spell it (`\ud800`), Arrow cannot hold it.
        label = next(one for one in labels if not _whole(one))
        raise DataError(
            f"{_place(label)}label {label.id!a} holds half a surrogate pair in its id, text or "
            "parents; write the character whole"
        ) from None
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def _place(label: Label) -> str:
    return f"{label.where}: " if label.where else ""


def _whole(label: Label) -> bool:
    try:
        "".join((label.id, label.text, *label.parents)).encode()
    except UnicodeEncodeError:
        return False
    return True


def _folded(label: str) -> str:
    return "".join(filter(str.isalnum, label)).casefold()
