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
Answer = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
DIMENSIONS = 4  # B, S, T, D


@torch.no_grad()
def score_at_owners(
    score: Score, hidden: Tensor, input_ids: Tensor, keep: Tensor, counts: Sequence[int]
) -> Tensor:
    """Score all labels for this rank's documents. All ranks must call, as often as each other.

    Args:
        score: (hidden, input_ids, keep) of some documents → logits (documents, n) of the labels
            that this rank owns.
        hidden: (B, S, T, D) of this rank's documents; sizes may differ between ranks.
        input_ids, keep: (B, S, T) int64 and bool.
        counts: labels that each rank owns, in the order of ranks and labels.
    Returns: (B, L) float32.

    Raises:
        TrainingError: hidden states are not (B, S, T, D).
    """

    def answer(*documents: Tensor) -> tuple[Tensor]:
        return (score(*documents).float(),)

    found = ask_owners(answer, hidden, input_ids, keep, counts)
    return torch.cat([logits for (logits,) in found], dim=1)


@torch.no_grad()
def ask_owners(
    answer: Answer, hidden: Tensor, input_ids: Tensor, keep: Tensor, widths: Sequence[int]
) -> list[tuple[Tensor, ...]]:
    """Return what every rank says of this rank's documents, in the order of ranks.

    Arguments as `score_at_owners`, but:
        answer: some documents → tensors (documents, this rank's width).
        widths: of the answers of each rank.

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
    mine: list[list[Tensor]] = [[] for _ in range(world)]
    for source in range(world):
        documents = _sent(source, rank, shapes[source], hidden, input_ids, keep)
        for said in answer(*documents):
            # Collectives want one shape; the last rank may own fewer labels than others.
            padded = said.new_zeros(len(said), max(widths))
            padded[:, : said.shape[1]] = said
            parts = [torch.empty_like(padded) for _ in range(world)] if rank == source else None
            dist.gather(padded, parts, dst=source)
            for owner, part in enumerate(parts or ()):
                mine[owner].append(part[:, : widths[owner]])
    return [tuple(one) for one in mine]


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
