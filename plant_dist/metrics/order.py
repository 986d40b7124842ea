"""The one order in which labels are ranked: by falling score, equal scores by rising label id.

Every score becomes a 64-bit key that sorts in this order, so that the best labels of a document,
the ranks of its gold labels and their ties come from comparisons of integers, without sorting all
L labels. Knows nothing of metrics. Letters: B documents, K candidates (all L labels, or a
shortlist), N labels kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from plant_dist.errors import DataError
from plant_dist.metrics.gold import Gold

_LOW_BITS = (1 << 32) - 1
# Below every key that a score can make.
_REMOVED = -(1 << 63)
_COMPARISONS = 1 << 23  # comparisons made at once while looking for gold; bounds memory


@dataclass(frozen=True)
class Ranking:
    """The best labels of B documents and where their gold labels stand.

    label_ids: (B, N) int32, best first; -1 where a document has fewer candidates.
    scores: (B, N) float32; -inf where label_ids is -1.
    gold_ranks: (nnz,) int32, in the order of the gold ids, from 1; exact beyond N; 0 for a gold
        label that is no candidate.
    """

    label_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    gold_ranks: NDArray[np.int32]


def rank_labels(scores_BK: Any, gold: Gold, keep: int, label_ids_BK: Any = None) -> Ranking:
    """Rank the candidates of each document.

    Args:
        scores_BK: floating point, torch (any device) or numpy, compared as float32. -inf removes
            a candidate (filter files). Without `label_ids_BK`, column k is label k.
        gold: the documents' gold labels.
        keep: N, how many labels to return; fewer where there are fewer candidates.
        label_ids_BK: label of each candidate, each at most once in a row; -1 is no candidate.

    Raises:
        DataError: shapes disagree, a score is NaN, or a row names a label twice.
    """
    scores_BK = torch.as_tensor(scores_BK).detach()
    device = scores_BK.device
    ids_BK = None if label_ids_BK is None else torch.as_tensor(label_ids_BK).to(device).long()
    _check(scores_BK, ids_BK, gold)
    keys_BK = _order_keys(scores_BK, ids_BK)
    rows = torch.as_tensor(gold.rows, device=device)
    labels = torch.as_tensor(gold.ids, device=device).long()
    gold_keys = _keys_of(labels, rows, keys_BK, ids_BK)
    # Keys of candidates are distinct, so that topk has no ties to break in its own, undefined, way.
    top_BN = keys_BK.topk(min(keep, keys_BK.shape[1]), dim=1).values
    label_ids_BN, scores_BN = _labels_and_scores(top_BN)
    places = torch.arange(len(rows), device=device) - torch.as_tensor(gold.offsets).to(device)[rows]
    ranks = _ranks(gold_keys, rows, places, keys_BK)
    return Ranking(label_ids_BN.cpu().numpy(), scores_BN.cpu().numpy(), ranks.int().cpu().numpy())


def _check(scores_BK: Tensor, ids_BK: Tensor | None, gold: Gold) -> None:
    if scores_BK.ndim != 2 or len(scores_BK) != gold.documents:
        shape = tuple(scores_BK.shape)
        raise DataError(f"scores have shape {shape} for {gold.documents} documents; want (B, K)")
    bad = torch.isnan(scores_BK).any(dim=1)
    if bad.any():
        raise DataError(f"scores of batch row {int(bad.nonzero()[0])} hold NaN; mend the model")
    if ids_BK is None:
        return
    if ids_BK.shape != scores_BK.shape:
        raise DataError(
            f"label ids have shape {tuple(ids_BK.shape)}, scores {tuple(scores_BK.shape)}; "
            "each score needs its label"
        )
    # Sorting finds repeats in K log K; comparing all pairs would take K².
    ordered = ids_BK.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if twice.any():
        row, column = twice.nonzero()[0].tolist()
        raise DataError(f"batch row {row} ranks label {int(ordered[row, column])} twice")


def _order_keys(scores_BK: Tensor, ids_BK: Tensor | None) -> Tensor:
    """Join score and label into one int64: a larger key is a better rank.

    The bits of a float32 sort like its value once those of negative numbers are flipped; adding
    zero makes -0.0 equal to 0.0. In place, because fresh memory costs more than the arithmetic.
    """
    # Half and bfloat16 become float32 without loss; float64 is compared as float32.
    bits_BK = (scores_BK.float() + 0.0).view(torch.int32)
    _flip_negative(bits_BK)
    keys_BK = bits_BK.long().bitwise_left_shift_(32)
    ids = torch.arange(keys_BK.shape[1], device=keys_BK.device) if ids_BK is None else ids_BK
    keys_BK.bitwise_or_(_LOW_BITS - ids)
    removed = torch.isneginf(scores_BK)
    if ids_BK is not None:
        removed |= ids_BK < 0
    return keys_BK.masked_fill_(removed, _REMOVED)


def _flip_negative(bits: Tensor) -> None:
    bits.bitwise_xor_((bits >> 31).bitwise_and_(0x7FFFFFFF))


def _labels_and_scores(keys_BN: Tensor) -> tuple[Tensor, Tensor]:
    """Take keys apart again: labels int32 and scores float32, -1 and -inf where removed."""
    removed = keys_BN == _REMOVED
    labels = (_LOW_BITS - (keys_BN & _LOW_BITS)).masked_fill_(removed, -1).int()
    bits = (keys_BN >> 32).int()
    _flip_negative(bits)
    return labels, bits.view(torch.float32).masked_fill(removed, -torch.inf)


def _keys_of(labels: Tensor, rows: Tensor, keys_BK: Tensor, ids_BK: Tensor | None) -> Tensor:
    """Return the key of each gold label in its document, `_REMOVED` for no candidate."""
    if ids_BK is None:
        return keys_BK[rows, labels]
    # A shortlist is in no order: each gold label is compared with its row's candidates.
    found = torch.full_like(labels, _REMOVED)
    for part in _parts(len(labels), ids_BK.shape[1]):
        same = ids_BK[rows[part]] == labels[part, None]
        found[part] = keys_BK[rows[part]].masked_fill_(~same, _REMOVED).amax(dim=1)
    return found


def _ranks(gold_keys: Tensor, rows: Tensor, places: Tensor, keys_BK: Tensor) -> Tensor:
    """Count the keys above each gold label's, plus one; 0 for a gold label that is no candidate.

    Every key is placed among its document's few gold keys; the counts of the places above a gold
    key, summed, are what ranks before it. That costs log(gold) a key, whatever L is.

    Args:
        gold_keys, rows, places: (nnz,) key, document, and position in the document.
    """
    documents, width = len(keys_BK), int(places.max()) + 1 if len(places) else 0
    # Filled with the largest key: no key is above it, so that filling counts nothing.
    gold_BG = gold_keys.new_full((documents, width), torch.iinfo(torch.int64).max)
    gold_BG[rows, places] = gold_keys
    gold_BG, original_BG = gold_BG.sort(dim=1)
    ranks_BG = torch.empty_like(gold_BG)
    for part in _parts(documents, keys_BK.shape[1]):
        above = _counts_above(keys_BK[part], gold_BG[part])
        ranks_BG[part] = torch.empty_like(above).scatter_(1, original_BG[part], above + 1)
    return ranks_BG[rows, places].masked_fill_(gold_keys == _REMOVED, 0)


def _counts_above(keys_BK: Tensor, gold_BG: Tensor) -> Tensor:
    """(B, G) how many keys of the row are larger than each gold key; rows of gold_BG rise."""
    documents, width = gold_BG.shape
    below_BK = torch.searchsorted(gold_BG, keys_BK)
    # Each row counts into bins of its own, so that one bincount serves all of them.
    below_BK += torch.arange(documents, device=keys_BK.device)[:, None] * (width + 1)
    counts = torch.bincount(below_BK.flatten(), minlength=documents * (width + 1))
    counts = counts.view(documents, width + 1)
    return counts.flip(1).cumsum(1).flip(1)[:, 1:]


def _parts(count: int, width: int) -> list[slice]:
    step = max(1, _COMPARISONS // max(1, width))
    return [slice(start, start + step) for start in range(0, count, step)]
