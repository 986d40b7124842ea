"""Texts as unit vectors: character n-grams weighted by TF-IDF, or an encoder handed in.

Rows have length 1, so that inner products are cosines. Must not know labels or models.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Rows = csr_array | NDArray[np.float32]


class Vectors(Protocol):
    """A space of texts."""

    name: str

    def fit(self, texts: Sequence[str]) -> None:
        """Learn what the space needs from training texts."""

    def transform(self, texts: Sequence[str]) -> Rows:
        """(n, F) float32 rows of length 1, or 0 for a text with nothing known in it."""


class CharacterNgrams:
    """TF-IDF of character n-grams within word boundaries, sublinear in term frequency.

    Args:
        shortest, longest: length of the n-grams in characters, word boundary included.
        min_documents: n-grams of fewer training texts are ignored.
        max_features: keep the most frequent n-grams only.
    """

    name = "TF-IDF"

    def __init__(
        self,
        shortest: int = 2,
        longest: int = 5,
        min_documents: int = 1,
        max_features: int | None = None,
    ) -> None:
        self._settings = {
            "ngram_range": (shortest, longest),
            "min_df": min_documents,
            "max_features": max_features,
        }
        self._vectorizer: Any = None

    def fit(self, texts: Sequence[str]) -> None:
        """Learn n-grams and their document frequencies."""
        # Imported here: it takes a second, which runs without baselines need not spend.
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(
            analyzer="char_wb", sublinear_tf=True, dtype=np.float32, **self._settings
        )
        self._vectorizer.fit(texts)

    def transform(self, texts: Sequence[str]) -> csr_array:
        """(n, F) sparse rows."""
        return csr_array(self._vectorizer.transform(texts))


class EncoderVectors:
    """Rows of an encoder as it is, scaled to length 1.

    Args:
        embed: maps n texts to an (n, D) floating array, such as mean-pooled hidden states.
        name: name of the baseline in the report.
    """

    def __init__(
        self, embed: Callable[[Sequence[str]], NDArray[Any]], name: str = "encoder, untrained"
    ) -> None:
        self.name = name
        self._embed = embed

    def fit(self, texts: Sequence[str]) -> None:
        """Learn nothing."""

    def transform(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(n, D) dense rows."""
        rows = np.asarray(self._embed(texts), dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.where(lengths > 0, lengths, 1.0), dtype=np.float32)


def nearest_rows(queries: Rows, rows: Rows, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Find the rows with the largest inner product, a block of queries at a time.

    Args:
        queries, rows: both sparse or both dense, of equal width.
        count: neighbours wanted; fewer where there are fewer rows.

    Returns:
        (n, count) int64 row numbers and float32 products, best first, equal ones by rising row.
    """
    found, products = queries.shape[0], rows.shape[0]
    count = min(count, products)
    # A block of at most 16 M products: 64 MB in float32, whatever the corpus.
    step = max(1, (1 << 24) // max(1, products))
    indices = np.empty((found, count), dtype=np.int64)
    values = np.empty((found, count), dtype=np.float32)
    # The transpose of csr is csc; converted once, the products need no conversion each.
    turned = rows.T.tocsr() if isinstance(rows, csr_array) else rows.T
    for start in range(0, found, step):
        part = queries[start : start + step] @ turned
        block = part.toarray() if isinstance(part, csr_array) else np.asarray(part)
        indices[start : start + step] = best = _best_columns(block, count)
        values[start : start + step] = np.take_along_axis(block, best, axis=1)
    return indices, values


def _best_columns(block: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Columns of the largest values; only values equal at the cut may be chosen freely."""
    # Linear in the rows, where sorting all of them to keep a hundred would not be.
    columns = np.argpartition(-block, count - 1, axis=1)[:, :count] if count else block[:, :0]
    # By column first: the stable sort by value then leaves equal ones in rising order.
    columns = np.sort(columns, axis=1).astype(np.int64)
    order = np.argsort(-np.take_along_axis(block, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)
