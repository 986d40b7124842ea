"""Which documents make which batch, in which order, on which rank.

A plan is a pure function of (lengths, seed, epoch): every rank computes the whole plan of global
batches and takes its slice, so ranks agree without talking and a run resumes at any batch. Must
not know tokens, labels or tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plant_dist.data.csr import Int64
from plant_dist.data.segments import Segmentation
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """One rank's part of a global batch.

    Attributes:
        rows: (B,) int64, rows of the split.
        weights: (B,) float32; a filler document (when a batch has fewer documents than there
            are ranks) has weight 0.
        global_weight: sum of the weights over all ranks.
    """

    rows: Int64
    weights: npt.NDArray[np.float32]
    global_weight: float


class BatchSampler:
    """Plans epochs of global batches and slices them by rank.

    Args:
        lengths: (N,) tokens of each document of the split.
        segmentation: gives the padded size of a document.
        documents_per_batch: documents of a global batch, over all ranks.
        tokens_per_batch: budget of padded tokens of a global batch, over all ranks: documents ×
            most segments × longest segment. Replaces `documents_per_batch`. A document that is
            over the budget alone makes a batch of its own.
        bucket_batches: batches whose documents are sorted by length together; 1 shuffles freely.
        seed: of the shuffling.
        rank, world: this process and the number of processes.
        shuffle: False gives the order for evaluation: longest first, the same in every epoch;
            the shares' `rows` say where each result belongs.

    Raises:
        ConfigError: neither or nonsensical sizes are given.
    """

    def __init__(
        self,
        lengths: Int64,
        segmentation: Segmentation,
        *,
        documents_per_batch: int | None = None,
        tokens_per_batch: int | None = None,
        bucket_batches: int = 50,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        shuffle: bool = True,
    ) -> None:
        if not (documents_per_batch or tokens_per_batch):
            raise ConfigError("set documents_per_batch or tokens_per_batch to at least 1")
        # A rank outside would take an empty or another's slice, and nothing would fail.
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} is outside a world of {world} processes")
        self._padded = segmentation.padded(lengths)
        self._documents_per_batch = documents_per_batch
        self._tokens_per_batch = tokens_per_batch
        self._bucket_batches = bucket_batches
        self._seed, self._rank, self._world = seed, rank, world
        self._shuffle = shuffle
        self._planned: tuple[int, list[Int64]] | None = None

    def plan(self, epoch: int = 0) -> list[Int64]:
        """Return the global batches of an epoch, each an array of rows; every row comes once."""
        # The last plan is kept: counting, iterating and resuming ask for the same one.
        key = epoch if self._shuffle else 0
        if self._planned is None or self._planned[0] != key:
            self._planned = (key, self._make_plan(key))
        return self._planned[1]

    def count(self, epoch: int = 0) -> int:
        """Return the number of batches of an epoch, the same on every rank."""
        return len(self.plan(epoch))

    def batches(self, epoch: int = 0, start_batch: int = 0) -> Shares:
        """Return this rank's shares of an epoch from a batch on; may be iterated repeatedly."""
        return Shares(self.plan(epoch)[start_batch:], self._rank, self._world)

    def _make_plan(self, epoch: int) -> list[Int64]:
        count = len(self._padded)
        if not self._shuffle:
            # Longest first, so that a batch too large for memory fails at once, not at the end.
            return self._cut(np.argsort(self._padded, kind="stable"))[::-1]
        # Shuffle, sort by length inside each bucket, cut, shuffle the batches: documents meet
        # others in every epoch, yet a batch holds documents of one length.
        random = np.random.default_rng([self._seed, epoch])
        order = random.permutation(count)
        # The bucket is the first key to sort by (the last given), so lengths sort only inside it.
        bucket = np.arange(count) // self._bucket_documents()
        order = order[np.lexsort((self._padded[order], bucket))]
        edges = np.flatnonzero(np.diff(bucket)) + 1
        batches = [batch for piece in np.split(order, edges) for batch in self._cut(piece)]
        # Otherwise every bucket would run from its shortest batch to its longest: a curriculum.
        return [batches[place] for place in random.permutation(len(batches))]

    def _bucket_documents(self) -> int:
        """Return the documents of a bucket; of budgeted batches, by the mean document."""
        if self._tokens_per_batch is None:
            assert self._documents_per_batch is not None
            return self._bucket_batches * self._documents_per_batch
        # A guess is enough: a bucket is only a neighbourhood within which lengths are alike.
        mean = max(float(self._padded.mean()), 1.0) if len(self._padded) else 1.0
        return max(1, int(self._bucket_batches * self._tokens_per_batch / mean))

    def _cut(self, rows: Int64) -> list[Int64]:
        """Cut rows, shortest document first, into batches."""
        if self._tokens_per_batch is None:
            size = self._documents_per_batch or 1
            return [rows[start : start + size] for start in range(0, len(rows), size)]
        batches, start, budget = [], 0, self._tokens_per_batch
        padded = self._padded[rows]
        while start < len(rows):
            # n documents from here cost n × the longest, the last one. The shortest bounds n.
            window = padded[start : start + max(1, budget // max(1, int(padded[start])))]
            # Costs rise with n, so the largest n in the budget is found by bisection.
            costs = np.arange(1, len(window) + 1) * window
            fitting = max(1, int(np.searchsorted(costs, budget, side="right")))
            batches.append(rows[start : start + fitting])
            start += fitting
        return batches


class Shares:
    """One rank's view of planned batches."""

    def __init__(self, plan: Sequence[Int64], rank: int, world: int) -> None:
        self._plan, self._rank, self._world = plan, rank, world

    def __len__(self) -> int:
        return len(self._plan)

    def __iter__(self) -> Iterator[Share]:
        for batch in self._plan:
            # Strided: a batch is sorted by length, so ranks get equal work.
            rows = batch[self._rank :: self._world]
            weight = 1.0
            if not len(rows):
                # Every rank must take part in every step, so it reads a document for nothing.
                rows, weight = batch[:1], 0.0
            weights = np.full(len(rows), weight, np.float32)
            # The true size of the whole batch: the mean over ranks is then the mean over documents.
            yield Share(rows, weights, float(len(batch)))
