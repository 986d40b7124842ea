"""Learning-to-rank losses over lists of items with graded relevance, and nDCG@k.

Every loss reads scores, grades and a mask of shape (N, M), N lists of M items, and returns the mean
over the lists that hold at least one pair of unlike grades. Masked items take no part: neither as
items, nor in a rank, nor in a normaliser. Must not know what is ranked or what scored it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from plant_dist.config.schema import RankConfig


def ranking_loss(
    scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, config: RankConfig
) -> Tensor:
    """The loss that `rank.loss` names, averaged over lists with at least one pair.

    Args:
        scores_NM: (N, M) float; higher ranks earlier.
        grades_NM: (N, M) integer or float, 0 is irrelevant; a grade y gains 2^y - 1.
        mask_NM: (N, M) bool, True for items that are there.
        config: which loss, `truncation` (k of LambdaRank) and `sigma`.

    Returns:
        () of the scores' dtype; 0 with zero gradients where no list holds a pair.
    """
    # Grade 0 gives a masked item no gain, in the sum and in the ideal order.
    grades_NM = grades_NM.to(scores_NM.dtype).masked_fill(~mask_NM, 0.0)
    losses_N = LOSSES[config.loss](scores_NM, grades_NM, mask_NM, config)
    ranked_N = _has_pair(grades_NM, mask_NM)
    # Filled, not multiplied: 0·NaN of an empty list would be NaN.
    return losses_N.masked_fill(~ranked_N, 0.0).sum() / ranked_N.sum().clamp(min=1)


def _has_pair(grades_NM: Tensor, mask_NM: Tensor) -> Tensor:
    """(N,) bool: lists in which some item is better than another."""
    best_N = grades_NM.masked_fill(~mask_NM, -torch.inf).amax(dim=1)
    worst_N = grades_NM.masked_fill(~mask_NM, torch.inf).amin(dim=1)
    return best_N > worst_N


def gains_of(grades: Tensor) -> Tensor:
    """Gain 2^y - 1 of a grade y, any shape."""
    return torch.exp2(grades) - 1.0


def _discounts(ranks: Tensor, k: int | None) -> Tensor:
    """1 / log2(1 + r) of ranks r = 1, 2, …, and 0 beyond k."""
    discounts = 1.0 / torch.log2(1.0 + ranks)
    return discounts if k is None else discounts.masked_fill(ranks > k, 0.0)


def _ideal_dcg(gains_NM: Tensor, k: int | None) -> Tensor:
    """(N, 1) DCG@k of the best order; masked items must gain 0."""
    ranks_M = torch.arange(1, gains_NM.shape[1] + 1, device=gains_NM.device, dtype=gains_NM.dtype)
    sorted_NM = gains_NM.sort(dim=1, descending=True).values
    return (sorted_NM * _discounts(ranks_M, k)).sum(dim=1, keepdim=True)


def _ranks(scores_NM: Tensor, mask_NM: Tensor) -> Tensor:
    """(N, M) ranks from 1 by falling score; masked items rank last, ties keep their order."""
    order_NM = scores_NM.masked_fill(~mask_NM, -torch.inf).argsort(
        dim=1, descending=True, stable=True
    )
    # The inverse of a permutation is its argsort.
    return order_NM.argsort(dim=1).to(scores_NM.dtype) + 1.0


def ndcg_at_k(scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, k: int) -> Tensor:
    """nDCG@k of each list: DCG@k = Σ_{rank ≤ k} (2^y - 1) / log2(1 + rank), over its ideal value.

    Järvelin and Kekäläinen, *Cumulated gain-based evaluation of IR techniques*, 2002, with the
    exponential gain of Burges et al., 2005.

    Returns:
        (N,) in [0, 1]; NaN for a list without a relevant item, whose nDCG is undefined.
    """
    gains_NM = gains_of(grades_NM.to(scores_NM.dtype)).masked_fill(~mask_NM, 0.0)
    found_N = (gains_NM * _discounts(_ranks(scores_NM, mask_NM), k)).sum(dim=1)
    return found_N / _ideal_dcg(gains_NM, k).squeeze(1)


def _better_first(grades_NM: Tensor) -> Tensor:
    """(N, P) positions of the items that can be the better of a pair, P as small as the batch lets.

    The lowest grade, 0, is never the better one. A list has few graded items among many others, so
    pairs are formed P×M, not M×M.
    """
    most = int((grades_NM > 0).sum(dim=1).max()) if grades_NM.numel() else 0
    return grades_NM.topk(max(most, 1), dim=1).indices


def _pairwise(
    scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, sigma: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Logistic loss of every pair, which pairs count, and the better items' positions.

    Returns:
        (N, P, M) ln(1 + e^{-σ(s_i - s_j)}) for better i and worse j, (N, P, M) bool, (N, P).
    """
    better_NP = _better_first(grades_NM)
    margin_NPM = scores_NM.gather(1, better_NP).unsqueeze(2) - scores_NM.unsqueeze(1)
    worse_NPM = grades_NM.gather(1, better_NP).unsqueeze(2) > grades_NM.unsqueeze(1)
    pairs_NPM = worse_NPM & mask_NM.gather(1, better_NP).unsqueeze(2) & mask_NM.unsqueeze(1)
    return softplus(-sigma * margin_NPM), pairs_NPM, better_NP


def lambdarank(scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, config: RankConfig) -> Tensor:
    """Σ over pairs y_i > y_j of |ΔNDCG@k| · ln(1 + e^{-σ(s_i - s_j)}), |Δ| held fixed: (N,).

    Its gradient in s_j is the sum of λ_ij = σ / (1 + e^{σ(s_i - s_j)}) · |ΔNDCG@k|, in s_i the
    negative of it (Burges, *From RankNet to LambdaRank to LambdaMART*, 2010, §4). |ΔNDCG@k| is the
    change of nDCG@k when i and j swap ranks, both discounts 0 beyond k, over IDCG@k.
    """
    losses_NPM, pairs_NPM, better_NP = _pairwise(scores_NM, grades_NM, mask_NM, config.sigma)
    # Ranks have no slope; a slope through the gains of a swap is not LambdaRank's.
    with torch.no_grad():
        gains_NM = gains_of(grades_NM)
        discounts_NM = _discounts(_ranks(scores_NM, mask_NM), config.truncation)
        swap_NPM = gains_NM.gather(1, better_NP).unsqueeze(2) - gains_NM.unsqueeze(1)
        # In place: N×P×M arrays are the largest here.
        swap_NPM *= discounts_NM.gather(1, better_NP).unsqueeze(2) - discounts_NM.unsqueeze(1)
        ideal_N1 = _ideal_dcg(gains_NM, config.truncation)
        # A list without gain has no pairs either; 1 keeps 0/0 out of its row.
        weights_NPM = swap_NPM.abs_() / ideal_N1.masked_fill(ideal_N1 == 0, 1.0).unsqueeze(2)
    return (losses_NPM * weights_NPM.masked_fill(~pairs_NPM, 0.0)).sum(dim=(1, 2))


def ranknet(scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, config: RankConfig) -> Tensor:
    """Mean over pairs y_i > y_j of ln(1 + e^{-σ(s_i - s_j)}): (N,).

    Burges et al., *Learning to rank using gradient descent*, 2005; the mean, not the sum, so that
    long lists do not outweigh short ones.
    """
    losses_NPM, pairs_NPM, _ = _pairwise(scores_NM, grades_NM, mask_NM, config.sigma)
    pairs_N = pairs_NPM.sum(dim=(1, 2)).clamp(min=1)
    return losses_NPM.masked_fill(~pairs_NPM, 0.0).sum(dim=(1, 2)) / pairs_N


def listnet(scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, config: RankConfig) -> Tensor:
    """Cross-entropy of top-one probabilities, softmax(scores) against gains / Σ gains: (N,).

    Cao et al., *Learning to rank: from pairwise approach to listwise approach*, 2007, eq. 4, with
    ln(2^y - 1) as the true score, so that the many items of grade 0 take no probability (the form
    that bounds nDCG: Bruch et al., 2019).
    """
    gains_NM = gains_of(grades_NM)
    target_NM = gains_NM / gains_NM.sum(dim=1, keepdim=True).clamp(min=1.0)
    log_probability_NM = scores_NM.masked_fill(~mask_NM, -torch.inf).log_softmax(dim=1)
    # A masked item has log-probability -inf and target 0: leave the product out, not 0·inf.
    return -(target_NM * log_probability_NM.masked_fill(target_NM == 0, 0.0)).sum(dim=1)


def approxndcg(scores_NM: Tensor, grades_NM: Tensor, mask_NM: Tensor, config: RankConfig) -> Tensor:
    """1 - nDCG with smooth ranks π_i = 1 + Σ_{j≠i} 1 / (1 + e^{σ(s_i - s_j)}): (N,).

    Qin, Liu and Li, *A general approximation framework for direct optimization of information
    retrieval measures*, 2010, eq. 9 to 13; over whole lists, without truncation.
    """
    better_NP = _better_first(grades_NM)
    margin_NPM = scores_NM.gather(1, better_NP).unsqueeze(2) - scores_NM.unsqueeze(1)
    ahead_NPM = torch.sigmoid(-config.sigma * margin_NPM).masked_fill(~mask_NM.unsqueeze(1), 0.0)
    # An item is half ahead of itself: 1 + (sum - 1/2).
    # Items of grade 0 gain nothing, so only the better ones need a rank.
    ranks_NP = 0.5 + ahead_NPM.sum(dim=2)
    gains_NM = gains_of(grades_NM)
    dcg_N = (gains_NM.gather(1, better_NP) * _discounts(ranks_NP, None)).sum(dim=1)
    ideal_N = _ideal_dcg(gains_NM, None).squeeze(1)
    return 1.0 - dcg_N / ideal_N.masked_fill(ideal_N == 0, 1.0)


Loss = Callable[[Tensor, Tensor, Tensor, RankConfig], Tensor]

LOSSES: dict[str, Loss] = {
    "lambdarank": lambdarank,
    "ranknet": ranknet,
    "listnet": listnet,
    "approxndcg": approxndcg,
}
