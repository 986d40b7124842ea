"""Searching an index whose shards lie with several ranks: questions go round, answers come back.

Label ids are global, so merging is choosing the best. Must not know models.

B documents of this rank, K labels retrieved, X width of the vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from plant_dist.runtime.collectives import exchange_arrays, gather_objects
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist.index import Float32, Int64, LabelIndex, merge

Found: TypeAlias = tuple[Float32, Int64]
PAIR = np.dtype([("score", np.float32), ("label", np.int64)])


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
    return ask_across(context, vectors, lambda asked: index.search(asked, k), k)


def ask_across(
    context: RunContext, vectors: Float32, answer: Callable[[Float32], Found], k: int
) -> Found:
    """Let every rank answer the questions of all; return the best for those of this one.

    All ranks must call.

    Args:
        vectors: (B, X) questions, B may differ from rank to rank.
        answer: scores and label ids (n, k or fewer) of n questions, from what this rank holds.
    Returns: (B, k) of both, best first.
    """
    if context.world == 1:
        return answer(vectors)
    # Vectors travel and not labels: a batch is kilobytes, a shard gigabytes.
    asked = gather_objects(context, vectors)
    scores, ids = answer(np.concatenate(asked))
    found = np.empty(scores.shape, PAIR)
    found["score"], found["label"] = scores, ids
    # Each rank hears the answers to its own questions alone.
    places = np.cumsum([len(one) for one in asked])[:-1]
    answers = exchange_arrays(context, np.split(found, places))
    mine = [one.reshape(len(vectors), -1) if len(vectors) else found[:0] for one in answers]
    return merge([one["score"] for one in mine], [one["label"] for one in mine], k)
