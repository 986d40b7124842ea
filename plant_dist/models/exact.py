"""The best of all labels, exactly, in memory that does not grow with their number.

A part of the decoder in a file of its own: it reads the same blocks, and of each block's scores
keeps only those among the best so far.

B documents, K labels kept, L labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.owners import ask_owners
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
    rows = decoder.labels

    def own_best(hidden: Tensor, input_ids: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        # A streamed state gives what reading at once gives.
        segment = joined(hidden, input_ids, keep, decoder.names)
        reading = decoder.read_whole(segment)
        best: tuple[Tensor, Tensor] | None = None
        for block in decoder._blocks(segment, rows.fetch()):
            logits_BK = decoder._block_logits(reading, block).float()
            ids_BK = torch.arange(block.start, block.stop, device=logits_BK.device)
            parts = [*([best] if best else []), (logits_BK, ids_BK.expand_as(logits_BK))]
            best = _merged(parts, k)
        assert best is not None  # a table has at least one label
        return best

    if len(rows.own) == rows.count:
        return own_best(hidden, input_ids, keep)
    widths = [min(k, count) for count in rows.counts]
    found = ask_owners(own_best, hidden, input_ids, keep, widths)
    return _merged([(logits, ids) for logits, ids in found], k)


def _merged(parts: Sequence[tuple[Tensor, Tensor]], k: int) -> tuple[Tensor, Tensor]:
    """Return the best of some labels' parts, which are in the order of labels."""
    logits, ids = zip(*parts, strict=True)
    # Earlier labels first: a stable sort then favours the smaller of equal ones.
    return _best(torch.cat(logits, dim=1), torch.cat(ids, dim=1), k)


def _best(logits_BK: Tensor, ids_BK: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    order_BK = logits_BK.sort(dim=1, descending=True, stable=True).indices[:, :k]
    ids_BK = order_BK if ids_BK is None else ids_BK.gather(1, order_BK)
    return logits_BK.gather(1, order_BK), ids_BK
