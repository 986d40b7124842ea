"""What each token adds to a logit: the decoder's sum, taken apart.

A part of the decoder in a file of its own; for explanations, hence without gradients.

B documents, T tokens of all segments, K labels considered, D encoder width, N branches.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plant_dist.models.branches import candidates
from plant_dist.models.decoder import LabelDecoder


@torch.no_grad()
def contributions(
    decoder: LabelDecoder,
    hidden: Tensor,
    input_ids: Tensor,
    keep: Tensor,
    label_ids_BK: Tensor | None = None,
) -> Tensor:
    """Return what each token adds to a label's logit: Σ_branch g · A(t) · (w_l·h_t).

    A logit is a sum over tokens, so this takes it apart without remainder: added up over the
    tokens it is the logit less what no token says: the bias, or the prior and the level of a
    label that has its name alone, what names count where nothing is like them (a similarity of
    0), and the state under logit_state. What a window says for a name is shared evenly among its
    tokens, what a bag says of a token among its places. Arguments as
    `LabelDecoder.attention_weights`.

    Returns: (B, K, T); below 0 where a token speaks against a label.
    """
    block, weights, reading = decoder.attended(hidden, input_ids, keep, label_ids_BK)
    names, evidence = decoder.names, dict(weights)
    if "boost" in block.rows:
        values_BKT = block.rows["boost"] @ reading.segment.hidden.transpose(1, 2)
        evidence = {branch: one * values_BKT for branch, one in weights.items()}
    if names is not None:
        # Their evidence is how like the name a window is; boosts have no part in it.
        scores_BK1, _ = candidates("named", 1, reading, block)
        excess_BK1 = names.excess(scores_BK1)
        # From there, not from the learned offset: below it the window that is most like a name
        # would count against the label, and be the last to be shown (docs/findings.md).
        unlike_BK1 = -names.offset.expand_as(excess_BK1)
        said_BK1 = names.evidence(excess_BK1) - names.evidence(unlike_BK1)
        evidence["named"] = weights["named"] * said_BK1
    if decoder.bag is not None:
        # All tokens, also where attention is of the last segment alone.
        said_BTR = decoder.bag.by_position(input_ids.flatten(1), keep.flatten(1))
        evidence["bag"] = block.rows["bag"] @ said_BTR.transpose(1, 2)
    evidence_BKTN = torch.stack([evidence[branch] for branch in decoder.config.branches], dim=-1)
    gates = decoder.gates(block)
    gated_BKT = (evidence_BKTN * (gates if gates.dim() == 1 else gates[..., None, :])).sum(-1)
    if names is None:
        return gated_BKT
    said_BK1 = names.evidence_alone(excess_BK1) - names.evidence_alone(unlike_BK1)
    alone_BKT = weights["named"] * said_BK1
    return torch.where(block.rows["alone"] > 0, alone_BKT, gated_BKT)
