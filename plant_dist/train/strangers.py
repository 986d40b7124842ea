"""Strangers: tokens of other documents, among which a contextual ranker must find a label's own.

Read once from training documents and kept: one position of each distinct token, so that rare tokens
are as many as they are in the vocabulary. Every rank reads the same, and what a step sees of them
hangs on its seed alone, so that lists are those of one process. Must not know labels or scores.

S strangers, D encoder width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plant_dist.data.batches import Batch, Collator, batch_loader
from plant_dist.data.sampling import BatchSampler
from plant_dist.models.segments import Segment
from plant_dist.train.splits import SplitArrays

# Distinct tokens kept (6 MiB of states of 384 numbers), and documents read for them at most.
STRANGERS = 4096
DOCUMENTS = 512


class Strangers(NamedTuple):
    """Tokens and how the encoder reads them where they stand.

    Attributes:
        input_ids: (S,) int64, all different.
        hidden: (S, D) float32.
    """

    input_ids: Tensor
    hidden: Tensor

    def drawn(self, count: int, seed: int) -> Strangers:
        """Return `count` of them, or all where there are fewer; the same seed draws the same."""
        order = np.random.default_rng(seed).permutation(len(self.input_ids))[:count]
        chosen = torch.from_numpy(order).to(self.input_ids.device)
        return Strangers(self.input_ids[chosen], self.hidden[chosen])


def read_strangers(
    split: SplitArrays,
    collator: Collator,
    documents_per_batch: int,
    seed: int,
    read: Callable[[Batch], Segment],
) -> Strangers:
    """Read training documents in a drawn order until there are enough distinct tokens.

    Args:
        documents_per_batch: documents read at once.
        seed: of the order.
        read: what the encoder makes of a batch.
    """
    # Not a rank's share but all of it, on every rank.
    sampler = BatchSampler(
        split.tokens.lengths(), collator.segmentation, seed=seed,
        documents_per_batch=documents_per_batch,
    )  # fmt: skip
    batches = math.ceil(DOCUMENTS / documents_per_batch)
    loader = batch_loader(split.tokens, split.labels, collator, sampler)
    met = np.zeros(0, np.int64)
    found = []
    for batch in islice(loader, batches):
        segment = read(batch)
        ids = segment.input_ids[segment.keep]
        distinct, first = np.unique(ids.cpu().numpy(), return_index=True)
        places = torch.from_numpy(first[~np.isin(distinct, met)]).to(ids.device)
        found.append(Strangers(ids[places], segment.hidden[segment.keep][places]))
        met = np.union1d(met, distinct)
        if len(met) >= STRANGERS:
            break
    input_ids, hidden = (torch.cat(parts)[:STRANGERS] for parts in zip(*found, strict=True))
    return Strangers(input_ids, hidden)
