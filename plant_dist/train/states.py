"""Hidden states of a frozen encoder, computed once and read from disk at every epoch after that.

A folder is named by a hash of all that decides the states (weights, token ids, how documents are
cut, arithmetic), so runs may share a place and never meet another's states. The states of a
document's segments lie one after another, special tokens and overlaps included, padding left out.
A document that another folder of the place holds is copied from there (`known_states.py`). Must not
know what reads them.

N documents, B of them in a batch, S segments, T tokens, D encoder width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plant_dist.artifacts import digest_of, short, write_json, written_whole
from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.csr import Csr, Int64, csr_from_lists
from plant_dist.data.sampling import BatchSampler
from plant_dist.data.segments import Segmentation
from plant_dist.errors import ArtifactError
from plant_dist.logs import get_logger, progress
from plant_dist.models.encoder import SegmentEncoder
from plant_dist.runtime.collectives import barrier, broadcast_object
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine
from plant_dist.train.known_states import Known, known_documents, write_documents

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
STATES, MEANS = "states.bin", "means.npy"
ABOUT = "states.json"
DOCUMENTS_PER_BATCH = 32
log = get_logger(__name__)


class HiddenStates(NamedTuple):
    """The states of some documents.

    Attributes:
        starts: (N,) int64; document n's states are the values from starts[n] on.
        values: (tokens, D) float16 or bfloat16, memory-mapped.
    """

    starts: Int64
    values: Tensor

    def take(self, rows: Int64) -> HiddenStates:
        """Return the states of some of the documents, which keep lying where they do."""
        return HiddenStates(self.starts[rows], self.values)

    def of(self, batch: Batch) -> Tensor:
        """Return a batch's states as the encoder would give them.

        Args: batch: documents of the split, on the CPU, cut as the states were.
        Returns: (B, S, T, D) float32; 0 in padding and for fillers.
        """
        read_BST, place_n = self._places(batch)
        hidden_BSTD = torch.zeros(*read_BST.shape, self.values.shape[1])
        hidden_BSTD[read_BST] = self.values[place_n].float()
        return hidden_BSTD

    def first_means(self, lengths_N: Int64, segmentation: Segmentation) -> Tensor:
        """Return the mean state of each document's first segment, (N, D) float32 on the CPU.

        As `TextEmbedder.mean_states_of` would, special tokens included, from what is on disk.

        Args: lengths_N: tokens of each document of the split.
        """
        return means_of(self.values, self.starts, lengths_N, segmentation)

    def fill(self, batch: Batch, hidden_BSTD: Tensor) -> None:
        """Write a batch's states, (B, S, T, D) on the CPU; the opposite of `of`."""
        read_BST, place_n = self._places(batch)
        self.values[place_n] = hidden_BSTD[read_BST].to(self.values.dtype)

    def _places(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return which tokens of a batch have states, (B, S, T) bool, and where they lie, (n,)."""
        # Fillers stand in other batches under their own row.
        read_BST = batch.attention_mask & (batch.rows >= 0)[:, None, None]
        sizes_B = read_BST.sum((1, 2)).numpy()
        starts_B = self.starts[batch.rows.clamp_min(0).numpy()]
        # The mask in reading order and a document's states are the same tokens in the same order.
        shift_B = starts_B - (np.cumsum(sizes_B) - sizes_B)
        return read_BST, torch.from_numpy(np.repeat(shift_B, sizes_B) + np.arange(sizes_B.sum()))


def means_of(
    values: Tensor, starts_N: Int64, lengths_N: Int64, segmentation: Segmentation
) -> Tensor:
    """Return the mean of the first segment of documents, (N, D) float32.

    Args:
        values: (tokens, D) states. starts_N: where each document's begin.
        lengths_N: tokens of each document.
    """
    sizes_N = np.minimum(lengths_N, segmentation.content) + segmentation.special.count
    means_ND = torch.zeros(len(sizes_N), values.shape[1])
    # A few documents at a time: their states are read as float32.
    for low in range(0, len(sizes_N), DOCUMENTS_PER_BATCH):
        sizes_n = torch.from_numpy(sizes_N[low : low + DOCUMENTS_PER_BATCH])
        owner_T = torch.repeat_interleave(sizes_n)
        first_n = torch.from_numpy(starts_N[low : low + len(sizes_n)])
        place_T = torch.arange(len(owner_T)) + (first_n - (sizes_n.cumsum(0) - sizes_n))[owner_T]
        sums_nD = torch.zeros(len(sizes_n), values.shape[1])
        sums_nD.index_add_(0, owner_T, values[place_T].float())
        means_ND[low : low + len(sizes_n)] = sums_nD / sizes_n[:, None]
    return means_ND


class StatesCache:
    """Hidden states of splits, from disk where they are there, else from the encoder.

    Args:
        folder: where the states of all splits and runs lie, on a disk that all ranks share.
        precision: `fp16` or `bf16`, how they are kept.
        identity: a hash of all that decides what the encoder computes.
        encoder: on the context's device; it is run without dropout and left as it was.
        segmentation: how documents are cut.
        context: every rank computes its share.
    """

    def __init__(
        self,
        folder: Path,
        precision: str,
        identity: str,
        encoder: SegmentEncoder,
        segmentation: Segmentation,
        context: RunContext,
    ) -> None:
        self._folder, self._dtype = folder, DTYPES[precision]
        self._encoder, self.segmentation, self._context = encoder, segmentation, context
        self._about = {
            "encoder": identity,
            "kept_as": precision,
            "computed_in": context.precision,
            "segment_tokens": segmentation.segment_tokens,
            "overlap_tokens": segmentation.overlap_tokens,
            "special_tokens": [*segmentation.special.prefix, *segmentation.special.suffix],
        }

    def open(self, tokens: Csr) -> HiddenStates:
        """Return the states of documents; compute them first where they are not there yet.

        All ranks must call.

        Raises:
            ArtifactError: the disk is full, or the states on it are cut short.
        """
        about = self._described(tokens)
        folder = self._folder / digest_of(about)[:16]
        offsets = self._offsets(tokens)
        # Rank 0 decides for all: ranks that read a shared disk at unlike moments would part ways.
        if not broadcast_object(self._context, (folder / ABOUT).is_file()):
            self._compute(tokens, offsets, folder, about)
        values = self._map(folder / STATES, int(offsets[-1]), shared=False)
        return HiddenStates(offsets[:-1], values)

    def means(self, tokens: Csr, compute: Callable[[Csr], Tensor]) -> Tensor:
        """Return the mean state of each document's first segment, (N, D); kept on disk, too.

        All ranks must call.

        Args: compute: gives them where no folder of states has the document; all ranks call it.
        """
        tokens = tokens.cut(self.segmentation.content)
        about = self._described(tokens) | {"kept_as": f"means of {self._about['kept_as']}"}
        folder = self._folder / digest_of(about)[:16]
        if broadcast_object(self._context, (folder / ABOUT).is_file()):
            return torch.from_numpy(np.load(folder / MEANS))
        means_ND = torch.zeros(tokens.size, self._encoder.width)
        missing_N = np.ones(tokens.size, np.bool_)
        for known in self._known(tokens, "first"):
            lengths_n = tokens.lengths()[known.rows]
            values = self._map_known(known)
            means_ND[known.rows] = means_of(values, known.starts, lengths_n, self.segmentation)
            missing_N[known.rows] = False
        missing = np.flatnonzero(missing_N)
        if len(missing):
            means_ND[missing] = compute(tokens.take(missing))
        if self._context.is_main:
            with written_whole(folder) as fresh:
                np.save(fresh / MEANS, means_ND.numpy())
                write_json(fresh / ABOUT, about)
        barrier(self._context)
        return means_ND

    def _described(self, tokens: Csr) -> dict[str, object]:
        return {**self._about, "documents": tokens.size, "tokens": _content_digest(tokens)}

    def _known(self, tokens: Csr, what: str) -> list[Known]:
        """Return documents that other folders hold, the same on every rank. All ranks must call."""
        return broadcast_object(
            self._context,
            known_documents(self._alike(), tokens, what) if self._context.is_main else [],
        )

    def _alike(self) -> list[Path]:
        """Return the folders of states that the same encoder gave, cut and kept alike."""
        found = []
        for path in sorted(self._folder.glob(f"*/{ABOUT}")):
            about = json.loads(path.read_text(encoding="utf-8"))
            if all(about.get(key) == value for key, value in self._about.items()):
                found.append(path.parent)
        return found

    def _map_known(self, known: Known) -> Tensor:
        path = self._folder / known.folder / STATES
        row = self._encoder.width * self._dtype.itemsize
        return self._map(path, path.stat().st_size // row, shared=False)

    def _offsets(self, tokens: Csr) -> Int64:
        """Return (N + 1,) where each document's states begin: what all its segments read."""
        cut, lengths = self.segmentation, tokens.lengths()
        segments = cut.counts(lengths)
        sizes = lengths + segments * cut.special.count + (segments - 1) * cut.overlap_tokens
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def _compute(self, tokens: Csr, offsets: Int64, folder: Path, about: dict[str, object]) -> None:
        """Run the encoder over all documents, every rank over its share, into one file."""
        context, size = self._context, int(offsets[-1])
        nbytes = size * self._encoder.width * self._dtype.itemsize
        log.info("hidden states: %s documents, %.2f GiB in %s", f"{tokens.size:,}",
                 nbytes / 2**30, folder)  # fmt: skip
        with ExitStack() as stack:
            fresh = stack.enter_context(written_whole(folder)) if context.is_main else None
            if fresh is not None:
                _reserve(fresh / STATES, nbytes)
            place = broadcast_object(context, fresh)
            assert place is not None  # the main process has made it
            values = self._map(place / STATES, size, shared=True)
            missing_N = np.ones(tokens.size, np.bool_)
            for known in self._known(tokens, "document"):
                missing_N[known.rows] = False
                if context.is_main:
                    self._copy(known, offsets, values)
            missing = np.flatnonzero(missing_N)
            log.info("hidden states: %s of them are in other folders",
                     f"{tokens.size - len(missing):,}")  # fmt: skip
            # Only where documents begin is asked of the offsets.
            self._fill(HiddenStates(offsets[missing], values), tokens.take(missing))
            # Other ranks write into the same file, which is renamed when this block ends.
            barrier(context)
            if fresh is not None:
                write_documents(fresh, tokens, self.segmentation.content, offsets)
                write_json(fresh / ABOUT, about)
        barrier(context)

    def _copy(self, known: Known, offsets: Int64, values: Tensor) -> None:
        """Copy documents' states from another folder."""
        source = self._map_known(known)
        sizes_n = offsets[known.rows + 1] - offsets[known.rows]
        parts = zip(known.starts.tolist(), offsets[known.rows].tolist(), sizes_n.tolist(),
                    strict=True)  # fmt: skip
        for start, place, size in parts:
            values[place : place + size] = source[start : start + size]

    @torch.no_grad()
    def _fill(self, states: HiddenStates, tokens: Csr) -> None:
        if not tokens.size:
            return
        context, encoder, engine = self._context, self._encoder, Engine(self._context)
        sampler = BatchSampler(
            tokens.lengths(), self.segmentation,
            documents_per_batch=DOCUMENTS_PER_BATCH * context.world,
            rank=context.rank, world=context.world, shuffle=False,
        )  # fmt: skip
        no_labels = csr_from_lists([[]] * tokens.size)
        batches = batch_loader(tokens, no_labels, Collator(self.segmentation), sampler)
        was_training = encoder.training
        encoder.eval()
        for batch in progress(batches, "hidden states", "batch", shown=context.is_main):
            on_device = batch.to(context.device)
            with engine.autocast():
                hidden = encoder(on_device.input_ids, on_device.attention_mask)
            states.fill(batch, hidden.cpu())
        encoder.train(was_training)

    def _map(self, path: Path, size: int, shared: bool) -> Tensor:
        """Map a file of states into memory, (size, D)."""
        width = self._encoder.width
        found, expected = path.stat().st_size, size * width * self._dtype.itemsize
        if found != expected:
            raise ArtifactError(
                f"{path} has {found:,} bytes, {expected:,} are expected for states "
                f"{short(path.parent.name)}; remove the folder, they are computed again"
            )
        if not size:
            return torch.zeros(0, width, dtype=self._dtype)
        flat = torch.from_file(str(path), shared=shared, size=size * width, dtype=self._dtype)
        return flat.view(size, width)


def _content_digest(tokens: Csr) -> str:
    """Return the sha256 of documents' token ids."""
    total = hashlib.sha256(np.ascontiguousarray(tokens.offsets, np.int64).data)
    total.update(np.ascontiguousarray(tokens.values, np.int32).data)
    return total.hexdigest()


def _reserve(path: Path, nbytes: int) -> None:
    """Make a file of a size. A full disk shows here, and not as a bus error when it is written."""
    with path.open("wb") as stream:
        if nbytes and hasattr(os, "posix_fallocate"):
            os.posix_fallocate(stream.fileno(), 0, nbytes)
        else:
            stream.truncate(nbytes)
