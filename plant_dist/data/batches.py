"""From planned rows to tensors: segments, masks and gold labels of a batch, and their loader.

A batch is built from flat arrays by index arithmetic; no Python runs per document. Must not know
the model, the loss, or how rows were planned.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plant_dist.data.csr import Csr
from plant_dist.data.sampling import BatchSampler, Share
from plant_dist.data.segments import Segmentation


@dataclass(frozen=True)
class Batch:
    """One rank's documents of one step. B documents, S segments, T tokens a segment.

    Attributes:
        input_ids: (B, S, T) int64; padding holds the pad token.
        attention_mask: (B, S, T) bool, what the encoder reads. A document with fewer segments
            than S ends in segments that are all False.
        keep: (B, S, T) bool, what labels attend: document tokens, each exactly once; no special
            token, no overlap, no padding.
        label_offsets: (B + 1,) int64.
        label_ids: (nnz,) int64; document b's gold labels are
            `label_ids[label_offsets[b]:label_offsets[b + 1]]`, rising.
        rows: (B,) int64, row in the split; -1 for a filler document.
        weights: (B,) float32, 1; 0 for a filler document.
        global_weight: sum of the weights over all ranks.
    """

    input_ids: Tensor
    attention_mask: Tensor
    keep: Tensor
    label_offsets: Tensor
    label_ids: Tensor
    rows: Tensor
    weights: Tensor
    global_weight: float

    @property
    def documents(self) -> int:
        """Number of documents B, the filler included."""
        return len(self.rows)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device; from pinned memory the copy does not block."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; a `DataLoader` calls it."""
        return self._map(Tensor.pin_memory)

    def thinned(self, share: float) -> Batch:
        """Return the batch with a share of the tokens that labels attend left out (word dropout).

        Neither the encoder nor the labels read them. A document that would lose all keeps all.
        Drawn from the global generator.
        """
        drawn = torch.rand(self.keep.shape, device=self.keep.device)
        gone = self.keep & (drawn < share)
        some_left = (self.keep & ~gone).flatten(1).any(1)
        gone = gone & some_left[:, None, None]
        return replace(self, attention_mask=self.attention_mask & ~gone, keep=self.keep & ~gone)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        tensors = {key: change(one) for key, one in values.items() if isinstance(one, Tensor)}
        return Batch(**{**values, **tensors})


class Collator:
    """Builds batches of segments.

    Args:
        segmentation: how documents become segments.
    """

    def __init__(self, segmentation: Segmentation) -> None:
        self.segmentation = segmentation

    def __call__(self, tokens: Csr, labels: Csr, share: Share) -> Batch:
        """Build the batch of a share.

        Args:
            tokens: token ids of the share's documents, in its order.
            labels: label indices of the same documents; empty rows where there is no gold.
            share: which rows of the split they are, and their weights.
        """
        input_ids, attention_mask, keep = map(torch.from_numpy, self._segments(tokens))
        return Batch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            keep=keep,
            # Copies: the arrays may be memory maps, which are read-only.
            label_offsets=torch.from_numpy(labels.offsets.astype(np.int64)),
            label_ids=torch.from_numpy(labels.values.astype(np.int64)),
            rows=torch.from_numpy(np.where(share.weights > 0, share.rows, -1)),
            weights=torch.from_numpy(share.weights),
            global_weight=share.global_weight,
        )

    def _segments(self, tokens: Csr) -> tuple[Any, Any, Any]:
        """Return input_ids, attention_mask and keep, (B, S, T)."""
        cut, special = self.segmentation, self.segmentation.special
        lengths = tokens.lengths()
        counts = cut.counts(lengths)
        # M segments in all: the document of each, its number in it, where it starts, its tokens.
        document_M = np.repeat(np.arange(tokens.size), counts)
        number_M = np.arange(len(document_M)) - np.repeat(np.cumsum(counts) - counts, counts)
        # A segment reads on from the overlap; the last one may be short.
        start_M = number_M * cut.stride
        size_M = np.minimum(lengths[document_M] - start_M, cut.content)

        width = int(cut.widths(lengths).max())
        # place: position among the document tokens of the segment; below 0 lies the prefix.
        place_MT = np.arange(max(width, 1))[None, :] - len(special.prefix)
        real_MT = (place_MT >= 0) & (place_MT < size_M[:, None])
        read_MT = place_MT < (size_M + len(special.suffix))[:, None]
        ids_MT = np.full(real_MT.shape, special.pad, np.int64)
        ids_MT[:, : len(special.prefix)] = special.prefix
        # Outside `real` the sources point into other documents; they are never read.
        source_MT = (tokens.offsets[document_M] + start_M)[:, None] + place_MT
        ids_MT[real_MT] = tokens.values[source_MT[real_MT]]
        rows_M = np.arange(len(document_M))
        # A suffix ends where its segment ends, so it is written segment by segment.
        for step, token in enumerate(special.suffix):
            ids_MT[rows_M, len(special.prefix) + size_M + step] = token
        # What the previous segment has kept is context here: read, not attended.
        repeated_MT = (number_M > 0)[:, None] & (place_MT < cut.overlap_tokens)

        # From segments in a row to (document, number); what no segment fills stays padding.
        shape = (tokens.size, int(counts.max()), ids_MT.shape[1])
        ids, read, keep = np.full(shape, special.pad), np.zeros(shape, bool), np.zeros(shape, bool)
        ids[document_M, number_M] = ids_MT
        read[document_M, number_M] = read_MT
        keep[document_M, number_M] = real_MT & ~repeated_MT
        return ids, read, keep


class _Documents(Dataset[Batch]):
    """A split, indexed by shares."""

    def __init__(self, tokens: Csr, labels: Csr, collate: Collator) -> None:
        self._tokens, self._labels, self._collate = tokens, labels, collate

    def __getitem__(self, share: Share) -> Batch:
        rows = share.rows
        return self._collate(self._tokens.take(rows), self._labels.take(rows), share)


def batch_loader(
    tokens: Csr,
    labels: Csr,
    collator: Collator,
    sampler: BatchSampler,
    epoch: int = 0,
    start_batch: int = 0,
    workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader[Batch]:
    """Return a loader of this rank's batches of an epoch.

    Args:
        tokens, labels: flat arrays of the split.
        collator: builds a batch.
        sampler: plans the epoch.
        epoch: from 0.
        start_batch: batches of the epoch to pass over, when resuming.
        workers: processes that build batches; 0 builds them in this one.
        pin_memory: put batches in page-locked memory, for fast copies to a GPU.
    """
    return DataLoader(
        _Documents(tokens, labels, collator),
        batch_size=None,  # the sampler yields whole batches
        sampler=sampler.batches(epoch, start_batch),
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_leave_group,
        pin_memory=pin_memory,
        # Its own generator: otherwise each epoch draws a number from the global one, and a
        # resumed run would go on with other dropout masks.
        generator=torch.Generator().manual_seed(epoch),
    )


def _leave_group(worker: int) -> None:
    # A launcher's signal goes to the whole group. Of a worker it would be the end, and the process
    # that was to save and stop would fail for want of batches; it ends its workers itself.
    os.setpgid(0, 0)


def _as_it_is(batch: Any) -> Any:
    return batch
