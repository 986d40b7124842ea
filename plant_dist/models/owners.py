"""Scoring all labels where their rows are: documents travel, rows stay.

Each rank's documents are sent to all ranks in turn, every rank scores its own labels for them, and
the logits return to the documents' rank. So memory holds one rank's documents, its own rows and
the logits of its documents, whatever the number of labels on other ranks. Must not know how
labels are scored.

Shapes: B documents of one rank, S segments, T tokens, D encoder width, L labels, n labels owned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from plant_dist.errors import TrainingError

Score = Callable[[Tensor, Tensor, Tensor], Tensor]
DIMENSIONS = 4  # B, S, T, D


@torch.no_grad()
def score_at_owners(
    score: Score, hidden: Tensor, input_ids: Tensor, keep: Tensor, counts: Sequence[int]
) -> Tensor:
    """Score all labels for this rank's documents. All ranks must call, as often as each other.

    Args:
        score: (hidden, input_ids, keep) of some documents → logits (documents, n) of the labels
            that this rank owns, float32.
        hidden: (B, S, T, D) of this rank's documents; sizes may differ between ranks.
        input_ids, keep: (B, S, T) int64 and bool.
        counts: labels that each rank owns, in the order of ranks and labels.
    Returns: (B, L) float32.

    Raises:
        TrainingError: hidden states are not (B, S, T, D).
    """
    if hidden.dim() != DIMENSIONS:
        raise TrainingError(
            f"hidden states have shape {tuple(hidden.shape)}; sharded rows score documents in "
            "segments: give (documents, segments, tokens, width)"
        )
    rank, world = dist.get_rank(), dist.get_world_size()
    shapes = _shapes(hidden, world)
    mine = hidden.new_empty(0)
    for source in range(world):
        documents = _sent(source, rank, shapes[source], hidden, input_ids, keep)
        logits_Bn = score(*documents).float()
        # Collectives want one shape; the last rank may own fewer labels than others.
        padded = logits_Bn.new_zeros(len(logits_Bn), max(counts))
        padded[:, : logits_Bn.shape[1]] = logits_Bn
        parts = [torch.empty_like(padded) for _ in range(world)] if rank == source else None
        dist.gather(padded, parts, dst=source)
        if parts is not None:
            cut = [part[:, :count] for part, count in zip(parts, counts, strict=True)]
            mine = torch.cat(cut, dim=1)
    return mine


def _shapes(hidden: Tensor, world: int) -> list[list[int]]:
    mine = torch.tensor(hidden.shape, device=hidden.device)
    found = [torch.empty_like(mine) for _ in range(world)]
    dist.all_gather(found, mine)
    return [one.tolist() for one in found]


def _sent(
    source: int, rank: int, shape: Sequence[int], hidden: Tensor, input_ids: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the documents of rank `source`, on every rank."""
    if rank == source:
        hidden, input_ids, keep = (one.contiguous() for one in (hidden, input_ids, keep))
    else:
        hidden = hidden.new_empty(tuple(shape))
        input_ids = input_ids.new_empty(tuple(shape[:3]))
        keep = keep.new_empty(tuple(shape[:3]))
    # Broadcasts take no bool on every backend.
    kept = keep.to(torch.uint8)
    for one in (hidden, input_ids, kept):
        dist.broadcast(one, src=source)
    return hidden, input_ids, kept.bool()
