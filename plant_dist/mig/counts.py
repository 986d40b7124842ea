"""Co-occurrence counts of tokens and labels over documents: sparse, streamed, mergeable.

A corpus arrives as chunks of two CSR arrays, (offsets, values): token ids, which may repeat in a
document, and label ids. Holds how chunks become presence matrices and presence matrices become
counts; must not know the gain formulas, which pairs are kept, or where the documents are stored.
N documents, V vocabulary, L labels (or the labels of one block).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from plant_dist.errors import DataError

IntArray = npt.NDArray[np.integer[Any]]
Csr = tuple[IntArray, IntArray]
Chunk = tuple[Csr, Csr]

# 16 MiB an int64 copy, of which `presence` makes a few; small enough to keep processes busy.
TOKENS_PER_CHUNK = 1 << 21


def document_chunks(
    tokens: Csr, labels: Csr, tokens_per_chunk: int = TOKENS_PER_CHUNK
) -> Iterator[Chunk]:
    """Cut a corpus into runs of documents; memory-mapped arrays are read one run at a time.

    Args:
        tokens: (offsets (N+1,), values) of token ids by document.
        labels: (offsets (N+1,), values) of label ids by document.
        tokens_per_chunk: a chunk ends before the document that would exceed it; a longer document
            is a chunk of its own.

    Raises:
        DataError: the two arrays hold different numbers of documents.
    """
    offsets = np.asarray(tokens[0], dtype=np.int64)
    if len(offsets) != len(labels[0]):
        raise DataError(
            f"mig: tokens of {len(offsets) - 1} documents but labels of {len(labels[0]) - 1}; "
            "prepare the dataset again"
        )
    start, documents = 0, len(offsets) - 1
    while start < documents:
        # The last offset within the limit ends the chunk; `start + 1` lets a giant document pass.
        limit = offsets[start] + tokens_per_chunk
        stop = max(int(np.searchsorted(offsets, limit, side="right")) - 1, start + 1)
        yield csr_rows(tokens, start, stop), csr_rows(labels, start, stop)
        start = stop


def csr_rows(rows: Csr, start: int, stop: int) -> Csr:
    """Rows `start` to `stop` as a CSR of their own, values in memory."""
    offsets = np.asarray(rows[0][start : stop + 1], dtype=np.int64)
    return offsets - offsets[0], np.asarray(rows[1][offsets[0] : offsets[-1]])


def presence(
    rows: Csr, width: int, what: str, excluded: IntArray | None = None
) -> sparse.csr_array:
    """Matrix of which row holds which id: 1 where present, however often it repeats.

    Args:
        rows: (offsets (n+1,), values) of ids.
        width: number of ids.
        what: what the ids are, for the error ("token", "label").
        excluded: ids that count as absent.

    Returns:
        (n, width) int32, canonical CSR (ids ascending inside a row).

    Raises:
        DataError: an id is negative or not below `width`.
    """
    offsets, values = rows
    # Before keys are formed of them: an id out of range would count for the next row, unseen.
    if values.size and not 0 <= int(values.min()) <= int(values.max()) < width:
        raise DataError(
            f"mig: {what} ids from {values.min()} to {values.max()} but only {width} are known; "
            "the dataset was made with another tokenizer or label space: prepare it again"
        )
    row_of = np.repeat(np.arange(len(offsets) - 1, dtype=np.int64), np.diff(offsets))
    if excluded is not None and len(excluded):
        kept = ~np.isin(values, excluded)
        row_of, values = row_of[kept], values[kept]
    # One int64 key for row and id: a single sort both orders them and drops repeats.
    row_of, ids = np.divmod(np.unique(row_of * width + values), width)
    starts = np.searchsorted(row_of, np.arange(len(offsets)))
    return presence_matrix(starts, ids.astype(np.int32), width)


def presence_matrix(offsets: IntArray, ids: IntArray, width: int) -> sparse.csr_array:
    """Wrap distinct ids by row as an int32 matrix of ones."""
    # int32, since products of these matrices count documents: int8 would wrap at 128 of them.
    ones = np.ones(len(ids), dtype=np.int32)
    return sparse.csr_array((ones, ids, offsets), shape=(len(offsets) - 1, width))


@dataclass(frozen=True)
class Cooccurrence:
    """How many documents hold each token, each label, and both; counts of disjoint corpora add.

    Attributes:
        documents: N.
        token_documents: (V,) int64, n_t.
        label_documents: (L,) int64, n_l.
        joint: (L, V) int32 CSR, n_tl; only pairs that occur together are stored.
    """

    documents: int
    token_documents: npt.NDArray[np.int64]
    label_documents: npt.NDArray[np.int64]
    joint: sparse.csr_array

    @classmethod
    def count(cls, tokens_NV: sparse.csr_array, labels_NL: sparse.csr_array) -> Cooccurrence:
        """Count documents from their presence matrices."""
        return cls(
            tokens_NV.shape[0],
            id_counts(tokens_NV),
            id_counts(labels_NL),
            sparse.csr_array(labels_NL.T @ tokens_NV),
        )

    def merge(self, other: Cooccurrence) -> Cooccurrence:
        """Counts of both corpora together, which must share no document."""
        return Cooccurrence(
            self.documents + other.documents,
            self.token_documents + other.token_documents,
            self.label_documents + other.label_documents,
            sparse.csr_array(self.joint + other.joint),
        )

    def label_block(self, start: int, stop: int) -> Cooccurrence:
        """The same counts for labels `start` to `stop` alone."""
        block = sparse.csr_array(self.joint[start:stop])
        return Cooccurrence(
            self.documents, self.token_documents, self.label_documents[start:stop], block
        )


def id_counts(present: sparse.csr_array) -> npt.NDArray[np.int64]:
    """Number of rows that hold each id: (width,) int64."""
    # Every stored entry is one row that holds the id, so the values need not be read.
    return np.bincount(present.indices, minlength=present.shape[1]).astype(np.int64)


def token_documents(
    tokens: Csr, width: int, read: Callable[[Csr], Csr] | None = None
) -> npt.NDArray[np.int64]:
    """Number of documents that hold each token: (width,) int64, a run of documents at a time.

    Args: read: what to count of a run of documents instead of its tokens, below `width` too.
    """
    counts = np.zeros(width, np.int64)
    for run, _ in document_chunks(tokens, tokens):
        counts += id_counts(presence(read(run) if read else run, width, "token"))
    return counts


def joint_counts(
    documents_of_labels_LN: sparse.csr_array, token_chunks: Iterable[sparse.csr_array]
) -> sparse.csr_array:
    """Joint counts n_tl of a block of labels, the corpus read chunk by chunk: YᵀX.

    The product touches only the documents that carry one of the block's labels, so the blocks of a
    corpus together cost what one product over all labels costs.

    Args:
        documents_of_labels_LN: (L, N) presence of the block's labels, by label.
        token_chunks: presence matrices (n, V) of consecutive documents, N rows in all, not empty.

    Returns:
        (L, V) int32 CSR with ascending columns.
    """
    joint_LV: sparse.csr_array | None = None
    start = 0
    for tokens_nV in token_chunks:
        stop = start + tokens_nV.shape[0]
        # The columns of this chunk: the same documents, in the same order, as its rows.
        part = sparse.csr_array(documents_of_labels_LN[:, start:stop] @ tokens_nV)
        joint_LV = part if joint_LV is None else sparse.csr_array(joint_LV + part)
        start = stop
    assert joint_LV is not None
    assert start == documents_of_labels_LN.shape[1]
    # scipy leaves the columns of a product in no order.
    joint_LV.sort_indices()
    return joint_LV
