"""Scores against rivals: what a logit says once the strength of the other labels is taken off.

The softmax loss teaches differences inside a document and leaves each document a level of its own,
so that no threshold fits all of them. σ(z_l - ln Σ e^z over the labels that are not gold) is the
probability that loss trains; when scoring, gold is not known, and the labels beyond the best few
stand for the rest. The order of a document's labels stays. Must not know how logits came about.

B documents, K labels considered.
"""

from __future__ import annotations

import torch
from torch import Tensor


def against_rivals(logits_BK: Tensor, best: int) -> Tensor:
    """z less ln Σ e^z over all labels of the document but its `best` ones, (B, K).

    Args:
        logits_BK: -inf where a document considers no label.
        best: about the number of labels a document carries; at least one rival is left, but for a
            document with a single label, which keeps its logit.
    """
    count = logits_BK.shape[1]
    if count < 2:
        return logits_BK
    real_B1 = (logits_BK > -torch.inf).sum(1, keepdim=True)
    leading = logits_BK.topk(min(best, count - 1), dim=1)
    place_K = torch.arange(leading.indices.shape[1], device=logits_BK.device)
    left_BK = leading.values.masked_fill(place_K < real_B1 - 1, -torch.inf)
    rivals_BK = logits_BK.scatter(1, leading.indices, left_BK)
    strength_B1 = rivals_BK.logsumexp(1, keepdim=True).masked_fill(real_B1 < 2, 0.0)
    return logits_BK - strength_B1
