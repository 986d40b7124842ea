"""Searching an index whose shards lie with several ranks: questions go round, answers come back.

Label ids are global, so merging is choosing the best. Must not know models.

B documents of this rank, K labels retrieved, X width of the vectors.
"""

from __future__ import annotations

import numpy as np

from plant_dist.runtime.collectives import gather_objects
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist.index import Float32, Int64, LabelIndex, merge


def owned_labels(labels: int, rank: int, world: int) -> tuple[int, int]:
    """Return (start, stop) of the consecutive labels that a rank's shard holds."""
    return labels * rank // world, labels * (rank + 1) // world


def search_across(
    index: LabelIndex, context: RunContext, vectors: Float32, k: int
) -> tuple[Float32, Int64]:
    """Search the shards of all ranks for the documents of this one. All ranks must call.

    Args:
        index: this rank's shards. vectors: (B, X), B may differ from rank to rank.
    Returns: as `LabelIndex.search`, over all labels.
    """
    if context.world == 1:
        return index.search(vectors, k)
    # Vectors travel and not labels: a batch is kilobytes, a shard gigabytes.
    asked = gather_objects(context, vectors)
    found = index.search(np.concatenate(asked), k)
    # Each rank keeps the answers to its own questions, from every rank.
    answers = gather_objects(context, found)
    before = sum(len(one) for one in asked[: context.rank])
    mine = slice(before, before + len(vectors))
    return merge(
        [scores[mine] for scores, _ in answers], [ids[mine] for _, ids in answers],
        min(k, index.about.labels),
    )  # fmt: skip
