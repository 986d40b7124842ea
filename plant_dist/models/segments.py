"""Segments of documents: what the decoder reads at once, and how segments join.

Knows only tensors and which tokens count; not encoders, labels or attention.

Shapes: B documents, S segments, T tokens, D encoder width, K labels considered.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from plant_dist.errors import DataError
from plant_dist.models.names import NameMatcher


class Segment(NamedTuple):
    """A stretch of every document of a batch.

    Attributes:
        hidden: (B, T, D) float, the encoder's last hidden states.
        input_ids: (B, T) int64.
        keep: (B, T) bool, the tokens that labels may attend; none where a document has ended.
        windows: (B, W, D) directions for the named branch, one around each token or one of each
            segment; None where they are not made yet.
    """

    hidden: Tensor
    input_ids: Tensor
    keep: Tensor
    windows: Tensor | None = None


def joined(
    hidden: Tensor, input_ids: Tensor, keep: Tensor, matcher: NameMatcher | None = None
) -> Segment:
    """One segment of all tokens, (B, S·T), from (B, T) or (B, S, T).

    Args: matcher: makes windows, which must not cross from one segment into the next.
    """
    if hidden.dim() == 3:
        return Segment(hidden, input_ids, keep)
    windows = None
    if matcher is not None:
        windows = matcher.directions(hidden.flatten(0, 1), keep.flatten(0, 1))
        windows = windows.reshape(len(hidden), -1, hidden.shape[-1])
    return Segment(hidden.flatten(1, 2), input_ids.flatten(1), keep.flatten(1), windows)


def last_segment(keep_BST: Tensor) -> Tensor:
    """True at the last segment of each document that keeps a token, (B, S) bool."""
    real_BS = keep_BST.any(-1)
    # Counted from the end: empty segments, within or behind a document, do not count.
    real_from_here_BS = real_BS.flip(1).cumsum(1).flip(1)
    return real_BS & (real_from_here_BS == 1)


def replaced(waiting: Segment, arrived: Segment, real_B: Tensor) -> Segment:
    """The segment that arrived where a document goes on, the waiting one where it has ended.

    Raises:
        DataError: the segments differ in width.
    """
    before, now = waiting.keep.shape[1], arrived.keep.shape[1]
    if before != now:
        raise DataError(
            f"logit_state was given segments of {before} and {now} tokens; pad them to one width"
        )
    # Chosen document by document, so that each ends at its own segment in one batch.
    return Segment(
        torch.where(real_B[:, None, None], arrived.hidden, waiting.hidden),
        torch.where(real_B[:, None], arrived.input_ids, waiting.input_ids),
        torch.where(real_B[:, None], arrived.keep, waiting.keep),
    )


def best_probabilities(logits_BK: Tensor, k: int) -> Tensor:
    """σ of the k largest logits of each document, exactly 0 for all other labels; detached."""
    best = logits_BK.detach().topk(min(k, logits_BK.shape[1]), dim=1)
    return torch.zeros_like(logits_BK).scatter_(1, best.indices, torch.sigmoid(best.values))
