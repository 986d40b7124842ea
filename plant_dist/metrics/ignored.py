"""Pairs of document and label that filter files take out of a ranking.

Datasets whose documents are labels too hold pairs that would be right for a trivial reason (a
product is its own neighbour); they are removed from the ranking and from the gold labels, as the
evaluation scripts around the Extreme Classification Repository do. Must not know metrics.
Letters: B documents, K candidates, L labels.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plant_dist.errors import DataError
from plant_dist.metrics.gold import Gold


def without_ignored(
    scores_BK: Any, label_ids_BK: Any, ignored: tuple[Any, Any], labels: int
) -> tuple[Tensor, NDArray[np.int64]]:
    """Return scores with -inf at the ignored pairs, and (B,) how many candidates that removed.

    Args:
        scores_BK: floating point; without label ids, column k is label k. Not changed.
        label_ids_BK: label of each candidate, -1 for none; or None.
        ignored: offsets (B+1,) and label ids, CSR.
        labels: L.

    Raises:
        DataError: offsets do not fit, or an ignored label is outside 0..L-1.
    """
    scores_BK = torch.as_tensor(scores_BK).detach()
    # Copies: arrays may be memory maps, which torch does not take as read-only.
    offsets, ids = (torch.as_tensor(np.array(one, np.int64)) for one in ignored)
    if len(offsets) != len(scores_BK) + 1 or int(offsets[-1]) != len(ids):
        raise DataError(
            f"ignored labels have {len(offsets) - 1} rows for {len(scores_BK)} documents; want "
            "CSR rows"
        )
    outside = ids[(ids < 0) | (ids >= labels)]
    if len(outside):
        raise DataError(f"ignored label {int(outside[0])}; ids must be 0..{labels - 1}")
    rows = torch.repeat_interleave(offsets.diff())
    device = scores_BK.device
    if label_ids_BK is None:
        # A copy of the batch, made only where there is something to remove.
        places, removed = (rows.to(device), ids.to(device)), scores_BK.new_tensor(-torch.inf)
        return scores_BK.index_put(places, removed), offsets.diff().numpy()
    label_ids_BK = torch.as_tensor(label_ids_BK).to(device).long()
    # A pair as one number, L + 1 a row so that -1, no candidate, is no other row's last label.
    lift = torch.arange(len(scores_BK), device=device)[:, None] * (labels + 1)
    pairs = (rows * (labels + 1) + ids).to(device)
    found_BK = torch.isin(label_ids_BK + lift, pairs) & (label_ids_BK >= 0)
    return scores_BK.masked_fill(found_BK, -torch.inf), found_BK.sum(1).cpu().numpy()


def gold_without(gold: Gold, ignored: tuple[Any, Any], labels: int) -> Gold:
    """Return the gold labels that are not ignored.

    Args:
        ignored: offsets (B+1,) and label ids, as `without_ignored` has checked them.
        labels: L.
    """
    offsets, ids = (np.asarray(one, np.int64) for one in ignored)
    left_out = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)) * labels + ids
    # A pair as one number.
    return gold.among(~np.isin(gold.rows * labels + gold.ids, left_out))
