"""The best of all labels, exactly, in memory that does not grow with their number.

A part of the decoder in a file of its own: it reads the same blocks, and of each block's scores
keeps only those among the best so far.

B documents, K labels kept, L labels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.segments import joined


@torch.no_grad()
def best_of_all(
    decoder: LabelDecoder, hidden: Tensor, input_ids: Tensor, keep: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Return logits and ids (B, min(k, L)) of each document's best labels, best first.

    Arguments as `LabelDecoder.forward`. Of equal logits the smaller label is kept. Under
    logit_state scores of all labels are held, since each depends on the best of the others.
    """
    if hidden.dim() == 4 and decoder.config.state == "logit_state":
        return _best(decoder(hidden, input_ids, keep), None, k)
    # A streamed state gives what reading at once gives.
    segment = joined(hidden, input_ids, keep, decoder.names)
    reading = decoder._read(segment)
    best: tuple[Tensor, Tensor] | None = None
    for block in decoder._blocks(segment, None):
        logits_BK = decoder._block_logits(reading, block)
        ids_BK = torch.arange(block.start, block.stop, device=logits_BK.device)
        ids_BK = ids_BK.expand_as(logits_BK)
        if best is not None:
            # Earlier blocks first: a stable sort then favours the smaller label.
            logits_BK = torch.cat([best[0], logits_BK], dim=1)
            ids_BK = torch.cat([best[1], ids_BK], dim=1)
        best = _best(logits_BK, ids_BK, k)
    assert best is not None  # a table has at least one label
    return best


def _best(logits_BK: Tensor, ids_BK: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    order_BK = logits_BK.sort(dim=1, descending=True, stable=True).indices[:, :k]
    ids_BK = order_BK if ids_BK is None else ids_BK.gather(1, order_BK)
    return logits_BK.gather(1, order_BK), ids_BK
