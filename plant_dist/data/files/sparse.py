"""Sparse matrices of extreme classification, as text and as `.npz`: labels, features, filters.

For corpora that ship features and no text this is all that can be read of them: enough for
metrics, propensities and shortlist benchmarks, not for a text classifier. Must not know texts.

    matrix        header `rows columns`, then a line a row: `column:value column:value`
    bag of words  header `N D L`, then `label,label feature:value feature:value`
    filter file   `row column` a line, no header
"""

from __future__ import annotations

import math
import zipfile
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import sparse

from plant_dist.data.csr import Csr
from plant_dist.data.files.lines import find_splits, read_lines, words
from plant_dist.errors import DataError

# File names of the Extreme Classification Repository, older ones last.
LABEL_MATRICES = ("{}_X_Y.txt", "Y.{}.npz", "{}_X_Y.npz", "{}_lbl_mat.txt")
FEATURE_MATRICES = ("{}_X_Xf.txt", "X.{}.npz", "{}_X_Xf.npz", "{}_ft_mat.txt")
FILTERS = ("filter_labels_{}.txt", "{}_filter_labels.txt")
BAGS_OF_WORDS = ("{}.txt",)
_DIGITS = 10  # a size of more does not fit the 32 bits of an index


class SparseRow(NamedTuple):
    """A row of a matrix and where it stands."""

    where: str
    columns: list[int]
    values: list[float]


@dataclass(frozen=True)
class Matrices:
    """What a folder holds of one split.

    Attributes:
        labels: (N, L) float32. features: (N, D) float32, None where there are none.
        ignored: row n = labels whose score does not count for document n; None without a filter.
    """

    labels: sparse.csr_array
    features: sparse.csr_array | None
    ignored: Csr | None


def open_matrices(folder: Path) -> dict[str, Matrices]:
    """Read all splits of a folder of sparse matrices or bags of words.

    Raises:
        DataError: there are none, or one breaks its format.
    """
    found = {}
    labels, features = find_splits(folder, *LABEL_MATRICES), find_splits(folder, *FEATURE_MATRICES)
    bags = {} if labels else bag_files(folder)
    filters = find_splits(folder, *FILTERS)
    for split in [*labels, *bags]:
        matrix: sparse.csr_array | None = None
        if split in bags:
            matrix, gold = read_bag_of_words(bags[split])
        else:
            gold = read_matrix(labels[split])
            if split in features:
                matrix = read_matrix(features[split])
        shape: tuple[int, int] = gold.shape
        ignored = read_pairs(filters[split], *shape) if split in filters else None
        found[split] = Matrices(gold, matrix, ignored)
    if not found:
        raise DataError(f"{folder} holds no trn_X_Y.txt, Y.trn.npz or train.txt; check the folder")
    return found


def feature_files(folder: Path) -> list[Path]:
    """Return the files of a folder that hold features instead of text."""
    return [*find_splits(folder, *FEATURE_MATRICES).values(), *bag_files(folder).values()]


def bag_files(folder: Path) -> dict[str, Path]:
    """Return the splits' bags of words: `train.txt` and the like whose first line is a header."""
    files = find_splits(folder, *BAGS_OF_WORDS)
    return {split: path for split, path in files.items() if _is_header(path, 3)}


def _is_header(path: Path, numbers: int) -> bool:
    # Latin-1 decodes whatever stands there; a header is made of digits in any encoding.
    first = words(next(read_lines(path, "latin-1"), ""))
    return len(first) == numbers and all(one.isascii() and one.isdigit() for one in first)


def read_matrix(path: Path) -> sparse.csr_array:
    """Read a matrix, text or `.npz`, as (rows, columns) float32.

    Raises:
        DataError: as `stream_matrix`; an `.npz` holds no sparse matrix.
    """
    if path.suffix == ".npz":
        return _load_npz(path)
    shape, rows = stream_matrix(path)
    gathered = _Rows()
    for row in rows:
        gathered.add(row.columns, row.values)
    return gathered.matrix(shape[1])


def read_bag_of_words(path: Path) -> tuple[sparse.csr_array, sparse.csr_array]:
    """Read (N, D) features and (N, L) labels; a line that begins with a blank has no label.

    Raises:
        DataError: as `stream_matrix`.
    """
    lines = read_lines(path, "latin-1")
    count, width, label_count = _header(path, lines, 3)
    features, labels = _Rows(), _Rows()
    for number, line in enumerate(lines, 2):
        where = f"{path}:{number}"
        named, _, rest = line.partition(" ")
        ids = [_index(one, label_count, where) for one in named.split(",") if one]
        labels.add(ids, [1.0] * len(ids))
        features.add(*_items(rest, width, where))
    _check_rows(path, labels.rows, count)
    return features.matrix(width), labels.matrix(label_count)


def stream_matrix(path: Path) -> tuple[tuple[int, int], Iterator[SparseRow]]:
    """Return a text matrix's (rows, columns) and its rows, one in memory at a time.

    Raises:
        DataError: no header, an item that is not `column:value`, a column outside the matrix or
            named twice, a value that is no number, or more or fewer rows than announced.
    """
    # Digits only, which any encoding spells alike.
    lines = read_lines(path, "latin-1")
    count, width = _header(path, lines, 2)
    return (count, width), _matrix_rows(path, lines, count, width)


def _matrix_rows(path: Path, lines: Iterator[str], count: int, width: int) -> Iterator[SparseRow]:
    number = 0
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number + 1}"
        yield SparseRow(where, *_items(line, width, where))
    _check_rows(path, number, count)


def read_pairs(path: Path, rows: int, columns: int) -> Csr:
    """Read a filter file as rows of rising columns; a pair that comes twice counts once.

    Raises:
        DataError: a line is not two numbers, or a number is outside (rows, columns).
    """
    keys = array("q")
    for number, line in enumerate(read_lines(path, "latin-1"), 1):
        where = f"{path}:{number}"
        pair = words(line)
        if not pair:
            continue
        if len(pair) != 2:
            raise DataError(f"{where}: found {line[:80]!r}, expected `document label`")
        keys.append(_index(pair[0], rows, where) * columns + _index(pair[1], columns, where))
    ordered = np.unique(np.frombuffer(keys, np.int64) if keys else np.zeros(0, np.int64))
    owners, values = np.divmod(ordered, max(columns, 1))
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(owners, minlength=rows), out=offsets[1:])
    return Csr(offsets, values.astype(np.int32))


def load_label_rows(path: Path) -> Csr:
    """Read the labels of an `.npz`: row n = columns whose value is not 0.

    Raises:
        DataError: it holds no sparse matrix.
    """
    matrix = _load_npz(path)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    return Csr(matrix.indptr.astype(np.int64), matrix.indices.astype(np.int32))


def _load_npz(path: Path) -> sparse.csr_array:
    try:
        # Never unpickles: SciPy refuses arrays of objects here.
        return sparse.csr_array(sparse.load_npz(path)).astype(np.float32)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path} is no sparse matrix of SciPy: {reason}; fetch it again") from None


class _Rows:
    """A matrix that grows row by row, in a few bytes an entry."""

    def __init__(self) -> None:
        self._ends, self._columns, self._values = array("q", [0]), array("i"), array("f")

    @property
    def rows(self) -> int:
        return len(self._ends) - 1

    def add(self, columns: list[int], values: list[float]) -> None:
        self._columns.extend(columns)
        self._values.extend(values)
        self._ends.append(len(self._columns))

    def matrix(self, width: int) -> sparse.csr_array:
        arrays = (np.array(self._values), np.array(self._columns), np.array(self._ends))
        return sparse.csr_array(arrays, shape=(self.rows, width))


def _header(path: Path, lines: Iterator[str], numbers: int) -> tuple[int, ...]:
    line = next(lines, "")
    found = words(line)
    digits = all(one.isascii() and one.isdigit() and len(one) < _DIGITS for one in found)
    if len(found) != numbers or not digits:
        names = "`rows columns`" if numbers == 2 else "`documents features labels`"
        raise DataError(f"{path}:1: found {line[:80]!r}, expected the header {names}")
    return tuple(map(int, found))


def _items(line: str, width: int, where: str) -> tuple[list[int], list[float]]:
    columns: list[int] = []
    values: list[float] = []
    for item in words(line):
        column, _, value = item.partition(":")
        columns.append(_index(column, width, where))
        values.append(_number(value, item, where))
    if len(set(columns)) < len(columns):
        raise DataError(f"{where}: a column comes twice; each may stand once in a row")
    return columns, values


def _index(word: str, limit: int, where: str) -> int:
    # `int` would also take signs, underscores and the digits of other scripts.
    if not (word.isascii() and word.isdigit()):
        raise DataError(f"{where}: found {word[:80]!r} where a number from 0 should be")
    if int(word) >= limit:
        raise DataError(f"{where}: found number {word}, the largest allowed is {limit - 1}")
    return int(word)


def _number(word: str, item: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where}: found {item[:80]!r}, expected `column:value`")
    return value


def _check_rows(path: Path, found: int, announced: int) -> None:
    if found != announced:
        raise DataError(f"{path}: the header announces {announced} rows, found {found}")


def refuse_features(folder: Path, wanted: str) -> None:
    """Refuse a folder of features without texts.

    Args:
        wanted: the files that would make it a corpus of texts.

    Raises:
        DataError: the folder holds features.
    """
    if found := feature_files(folder):
        raise DataError(
            f"{folder} holds bag-of-words features only ({found[0].name}) and no text to train "
            f"on; add {wanted} of the raw-text download. Metrics and shortlists can be measured on "
            "features: plant_dist.data.files.sparse.open_matrices"
        )


def matrix_shape(path: Path) -> tuple[int, int]:
    """Return the (rows, columns) of a matrix, text or `.npz`, without reading its entries.

    Raises:
        DataError: there is no header, or the `.npz` holds no sparse matrix.
    """
    if path.suffix != ".npz":
        count, width = _header(path, read_lines(path, "latin-1"), 2)
        return count, width
    try:
        with np.load(path) as arrays:
            count, width = map(int, arrays["shape"])
            return count, width
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is no sparse matrix of SciPy: {error}; fetch it again") from None
