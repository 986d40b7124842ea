"""From documents to the gain table: stream, count, score, in as many processes as asked for.

Documents are read once, chunk by chunk, and their distinct tokens spooled to a scratch folder;
then every block of labels is counted and cut to its best tokens on its own, so that memory holds
one block per process and never a V×L array. Knows processes and scratch files; must not know
formulas, datasets or artifacts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from itertools import chain, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from scipy import sparse

from plant_dist.config.schema import MigConfig
from plant_dist.errors import DataError
from plant_dist.logs import get_logger, progress
from plant_dist.mig.counts import (
    TOKENS_PER_CHUNK,
    Chunk,
    Cooccurrence,
    Csr,
    IntArray,
    document_chunks,
    id_counts,
    joint_counts,
    presence,
    presence_matrix,
)
from plant_dist.mig.lists import GainTable, offsets_of
from plant_dist.mig.select import Ints, TopTokens, top_tokens
from plant_dist.mig.workers import available_cores, counting_pool, ordered_map

log = get_logger(__name__)


def compute_gains(
    tokens: Csr,
    labels: Csr,
    vocabulary_size: int,
    label_count: int,
    config: MigConfig,
    excluded: Sequence[int] = (),
    scratch: Path | None = None,
    shown: bool = True,
    tokens_per_chunk: int = TOKENS_PER_CHUNK,
) -> GainTable:
    """Mutual-information gain of every label's best tokens, from training documents only.

    Args:
        tokens: (offsets (N+1,) int64, token ids int32) by document; ids may repeat; the arrays may
            be memory-mapped.
        labels: (offsets (N+1,) int64, label ids int32) by document.
        vocabulary_size, label_count: V and L.
        config: association, score, tokens kept per label, block size, processes.
        excluded: token ids to leave out, such as special tokens.
        scratch: existing folder for temporary files, about 4 bytes per distinct token of a
            document; the system's own if None.
        shown: draw progress bars.
        tokens_per_chunk: see `document_chunks`; more tokens than this are counted in several
            processes.

    Raises:
        DataError: no documents, no labels, an id out of range, or arrays of different documents.
        RuntimeSetupError: a counting process died.
    """
    chunks = document_chunks(tokens, labels, tokens_per_chunk)
    first = list(islice(chunks, 2))
    # A corpus of one chunk is counted here: starting processes would cost more than it saves.
    workers = (config.workers or available_cores()) if len(first) > 1 else 1
    # The pool is named last and so ends first: no process is left to write into a folder gone.
    with (
        TemporaryDirectory(prefix="plant-mig-", dir=scratch) as folder,
        counting_pool(workers) as pool,
    ):
        # A generator: a chunk is read when a process is free for it, never all of them at once.
        tasks = (
            SpoolTask(
                chunk, vocabulary_size, label_count, np.asarray(excluded), Path(folder, str(number))
            )
            for number, chunk in enumerate(chain(first, chunks))
        )
        spool = _spool_documents(tasks, pool, workers, shown)
        return _gains_of_labels(spool, config, pool, workers, shown)


class SpoolTask(NamedTuple):
    """A chunk of documents to be reduced to its distinct tokens, and the file they go to."""

    chunk: Chunk
    vocabulary_size: int
    label_count: int
    excluded: IntArray
    file: Path


class SpooledChunk(NamedTuple):
    """What the parent keeps of a chunk: token counts (V,), labels (n, L), the tokens' file."""

    token_documents: Ints
    labels: sparse.csr_array
    file: Path


class Spool(NamedTuple):
    """The whole corpus, reduced: token counts (V,), documents of labels (L, N), token files."""

    token_documents: Ints
    documents_of_labels: sparse.csr_array
    files: tuple[Path, ...]


def _spool_chunk(task: SpoolTask) -> SpooledChunk:
    tokens, labels = task.chunk
    tokens_nV = presence(tokens, task.vocabulary_size, "token", task.excluded)
    labels_nL = presence(labels, task.label_count, "label")
    # Files and not a pipe: every block of labels reads all chunks again, in whatever process.
    np.save(f"{task.file}.offsets.npy", tokens_nV.indptr)
    # The values are not stored: they are all 1.
    np.save(f"{task.file}.ids.npy", tokens_nV.indices)
    return SpooledChunk(id_counts(tokens_nV), labels_nL, task.file)


def _open_chunk(file: Path, vocabulary_size: int) -> sparse.csr_array:
    # Memory-mapped, so that the processes of a machine share one copy.
    offsets, ids = (np.load(f"{file}.{part}.npy", mmap_mode="r") for part in ("offsets", "ids"))
    return presence_matrix(offsets, ids, vocabulary_size)


def _spool_documents(
    tasks: Iterable[SpoolTask], pool: Executor | None, workers: int, shown: bool
) -> Spool:
    started = time.perf_counter()
    # Two tasks a process: none waits for the next to be made, and few are in memory.
    done = ordered_map(_spool_chunk, tasks, pool, 2 * workers)
    chunks = list(progress(done, "mig: documents", "chunk", shown=shown))
    if not chunks:
        raise DataError("mig: no training documents; prepare the dataset with a training split")
    # Turned round once, so that a block of labels is a slice of rows.
    documents_LN = sparse.csr_array(sparse.vstack([chunk.labels for chunk in chunks]).T.tocsr())
    if not documents_LN.nnz:
        raise DataError("mig: no training document carries a label; check data.labels_column")
    token_documents = np.sum([chunk.token_documents for chunk in chunks], axis=0)
    log.info(
        "mig: counted %s documents, %s distinct tokens, in %.1f s",
        f"{documents_LN.shape[1]:,}", f"{np.count_nonzero(token_documents):,}",
        time.perf_counter() - started,
    )  # fmt: skip
    return Spool(token_documents, documents_LN, tuple(chunk.file for chunk in chunks))


class BlockTask(NamedTuple):
    """A block of labels to be counted against the spooled corpus and cut to its best tokens."""

    documents_of_labels: sparse.csr_array
    token_documents: Ints
    files: tuple[Path, ...]
    config: MigConfig


def _block_gains(task: BlockTask) -> TopTokens:
    vocabulary_size = len(task.token_documents)
    token_chunks = (_open_chunk(file, vocabulary_size) for file in task.files)
    counts = Cooccurrence(
        task.documents_of_labels.shape[1],
        task.token_documents,
        # Rows hold distinct documents, so their lengths are n_l.
        np.diff(task.documents_of_labels.indptr).astype(np.int64),
        joint_counts(task.documents_of_labels, token_chunks),
    )
    return top_tokens(counts, task.config)


def _gains_of_labels(
    spool: Spool, config: MigConfig, pool: Executor | None, workers: int, shown: bool
) -> GainTable:
    started = time.perf_counter()
    labels, documents = spool.documents_of_labels.shape
    starts = range(0, labels, config.block_labels)
    tasks = (
        BlockTask(
            sparse.csr_array(spool.documents_of_labels[start : start + config.block_labels]),
            spool.token_documents, spool.files, config,
        )
        for start in starts
    )  # fmt: skip
    done = ordered_map(_block_gains, tasks, pool, 2 * workers)
    blocks = list(progress(done, "mig: labels", "block", total=len(starts), shown=shown))
    # Blocks come back in the order of the labels: joining them is all that is left to do.
    top = TopTokens(*(np.concatenate(arrays) for arrays in zip(*blocks, strict=True)))
    log.info(
        "mig: kept %s tokens of %s labels in %.1f s",
        f"{len(top.tokens):,}", f"{labels:,}", time.perf_counter() - started,
    )  # fmt: skip
    return GainTable(
        offsets_of(top.counts),
        top.tokens,
        top.gains,
        top.information,
        spool.token_documents,
        np.diff(spool.documents_of_labels.indptr).astype(np.int64),
        np.asarray(documents, dtype=np.int64),
    )
