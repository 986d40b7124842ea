"""What the decoder's branches look at: a segment's token vectors, and the rows of some labels.

A `Reading` is a segment made ready once for all blocks of labels; a `LabelBlock` is some labels
with their fetched rows. `candidates` says, for one branch, which tokens each label attends and
with what scores. Must not know gates, logits, states or memory budgets.

Shapes: B documents, T tokens, D encoder width, R ranker width, K labels considered, G = B or 1
(rows shared by all documents), k tokens kept, U distinct tokens of a document, X a vector's width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from plant_dist.models.attention import (
    DROPPED,
    exactly,
    first_slots,
    keep_largest,
    kept_dots,
    mask_scores,
    wide,
)
from plant_dist.models.ranker import LexicalScorer, TokenScorer
from plant_dist.models.segments import Segment
from plant_dist.models.static import StaticGains

Result = TypeVar("Result")


@dataclass(frozen=True)
class PositionTokens:
    """Token vectors that differ from position to position.

    Attributes:
        vectors: (B, T, X) float.
        bias: (B, T) float, or None.
        keep: (B, T) bool, the positions that may be attended.
    """

    vectors: Tensor
    bias: Tensor | None
    keep: Tensor

    def scores(self, rows_GKX: Tensor) -> Tensor:
        """Scores of every position for every label, (B, K, T), -inf where not kept."""
        return _masked_product(rows_GKX, self.vectors, self.bias, self.keep)

    def best(self, rows_GKX: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores of the k best positions, -inf beyond the kept ones, and the positions."""
        # All scores only choose; the slope goes through the k kept ones, computed anew.
        with torch.no_grad():
            best_BKk, positions_BKk = keep_largest(self.scores(rows_GKX), k)
        scores_BKk = _kept_scores(rows_GKX, self.vectors, self.bias, positions_BKk)
        # A document with fewer than k tokens has dropped ones among its k; they stay dropped.
        return scores_BKk.masked_fill(best_BKk == DROPPED, DROPPED), positions_BKk


@dataclass(frozen=True)
class DistinctTokens:
    """Token vectors that depend on the token id alone, for each document's distinct ids.

    A document repeats its tokens, so ids are scored once and ranked once, then dealt out to their
    positions, earlier ones first. Positions of one id tie, and this is what settles the tie.

    Attributes:
        vectors, bias: (B, U, X) and (B, U) float.
        count: (B, U) int64, kept positions of each id; 0 fills up shorter rows.
        order: (B, T) int64, positions sorted by id; `first` (B, U) is where each id starts there.
        slot: (B, T) int64, which id stands at a position; meaningless where not kept.
        keep: (B, T) bool, the positions that may be attended.
    """

    vectors: Tensor
    bias: Tensor
    count: Tensor
    first: Tensor
    order: Tensor
    slot: Tensor
    keep: Tensor

    @classmethod
    def of(cls, segment: Segment, scorer: TokenScorer) -> DistinctTokens:
        """Sort a segment's kept tokens by id and score each id once."""
        documents = len(segment.keep)
        # Dropped tokens take the highest id and so the last places.
        dropped = torch.iinfo(torch.int64).max
        ids_BT, order_BT = segment.input_ids.masked_fill(~segment.keep, dropped).sort(
            dim=1, stable=True
        )
        starts_BT = torch.ones_like(segment.keep)
        starts_BT[:, 1:] = ids_BT[:, 1:] != ids_BT[:, :-1]
        rank_BT = starts_BT.cumsum(1) - 1
        kept_BT = ids_BT != dropped
        # At least one, so that a batch without a kept token still has a shape.
        distinct = max(int((starts_BT & kept_BT).sum(1).max()), 1)
        # Dropped tokens are written to one more column, which is cut off.
        rank_BT = rank_BT.masked_fill(~kept_BT, distinct)
        blank_BU = ids_BT.new_zeros(documents, distinct + 1)
        id_BU = blank_BU.scatter(1, rank_BT, ids_BT)[:, :-1]
        count_BU = blank_BU.scatter_add(1, rank_BT, torch.ones_like(ids_BT))[:, :-1]
        # Clamped to lie inside the table: what a dropped position reads is masked later.
        slot_BT = torch.zeros_like(rank_BT).scatter(1, order_BT, rank_BT.clamp_max(distinct - 1))
        vectors_BUX, bias_BU = scorer.token_factors(id_BU, None)
        first_BU = count_BU.cumsum(1) - count_BU
        vectors_BUX, bias_BU = wide(vectors_BUX), wide(bias_BU)
        return cls(vectors_BUX, bias_BU, count_BU, first_BU, order_BT, slot_BT, segment.keep)

    def scores(self, rows_GKX: Tensor) -> Tensor:
        """Scores of every position for every label, (B, K, T), -inf where not kept."""
        # Each id is scored once, then copied to its positions, which therefore tie exactly.
        scores_BKU = _masked_product(rows_GKX, self.vectors, self.bias, self.count > 0)
        slot_BKT = self.slot[:, None].expand(-1, scores_BKU.shape[1], -1)
        return mask_scores(scores_BKU.gather(-1, slot_BKT), self.keep)

    def best(self, rows_GKX: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores of the k best positions, -inf beyond the kept ones, and the positions."""
        with torch.no_grad():
            real_BU = self.count > 0
            scores_BKU = _masked_product(rows_GKX, self.vectors, self.bias, real_BU)
            # k ids hold at least k positions, so the best positions are among theirs.
            ids_BKk = scores_BKU.topk(min(k, scores_BKU.shape[-1]), dim=-1).indices
            slots = min(k, self.keep.shape[1])
            item_BKk, copy_BKk, filled_BKk = first_slots(_pick(self.count, ids_BKk), slots)
            ids_BKk = ids_BKk.gather(-1, item_BKk)
            # Unfilled slots point to place 0, a valid index; their score is -inf below.
            place_BKk = (_pick(self.first, ids_BKk) + copy_BKk).masked_fill(~filled_BKk, 0)
            positions_BKk = _pick(self.order, place_BKk).masked_fill(~filled_BKk, 0)
        scores_BKk = _kept_scores(rows_GKX, self.vectors, self.bias, ids_BKk)
        return scores_BKk.masked_fill(~filled_BKk, DROPPED), positions_BKk


# Up to so many tokens, one product with every token costs less than one with the kept tokens alone
# (and a value per token less memory than a context of width D).
SHORT_TOKENS = 64


class Reading(NamedTuple):
    """A segment as the branches see it.

    `asked` are its states over √D, whose products with queries are scores; None without queries.
    `short` says that it is read densely: every token scored with gradient, then the k best taken.
    `bag` (B, R) is of whole documents, hence None while they are read segment by segment.
    """

    segment: Segment
    asked: PositionTokens | None
    planted: PositionTokens | DistinctTokens | None
    windows: PositionTokens | None
    gains: StaticGains | None
    short: bool
    bag: Tensor | None = None


class LabelBlock(NamedTuple):
    """Labels considered at once: all from `start` to `stop` - 1, or those columns of a shortlist.

    Attributes:
        label_ids: (B, K) int64 of a shortlist; None where the labels are consecutive.
        rows: each field (G, K, width), G = 1 where the labels are consecutive.
    """

    start: int
    stop: int
    label_ids: Tensor | None
    rows: dict[str, Tensor]


def read_segment(
    segment: Segment, scorer: TokenScorer | None, gains: StaticGains | None, short: bool,
    asks: bool,
) -> Reading:  # fmt: skip
    """Make a segment ready: what hangs on its tokens alone is worked out once for all labels.

    Args: asks: there are queries, of the learned branch.
    """
    asked = None
    if asks:
        # B·T·D numbers; queries are B·K·D where each document has its own.
        scaled_BTD = segment.hidden * segment.hidden.shape[-1] ** -0.5
        asked = PositionTokens(scaled_BTD, None, segment.keep)
    windows = None
    if segment.windows is not None:
        keep_BW, count = segment.keep, segment.windows.shape[1]
        if count < keep_BW.shape[1]:
            # One of each segment, which counts where the segment keeps a token.
            keep_BW = keep_BW.view(len(keep_BW), count, -1).any(-1)
        windows = PositionTokens(wide(segment.windows), None, keep_BW)
    planted: PositionTokens | DistinctTokens | None = None
    if isinstance(scorer, LexicalScorer):
        planted = DistinctTokens.of(segment, scorer)
    elif scorer is not None:
        factors_BTR, bias_BT = scorer.token_factors(segment.input_ids, segment.hidden)
        planted = PositionTokens(wide(factors_BTR), wide(bias_BT), segment.keep)
    return Reading(segment, asked, planted, windows, gains, short)


def candidates(
    branch: str, k: int | None, reading: Reading, block: LabelBlock
) -> tuple[Tensor, Tensor | None]:
    """Scores of the tokens that each label attends through a branch, and their positions.

    Softmax over the scores gives the branch's attention. Which tokens are kept has no slope, so
    only kept scores take part in the backward pass.

    Args: k: tokens kept; None keeps all.
    Returns: (B, K, k) scores, -inf where nothing is kept, and positions int64; or (B, K, T) and
        None where every token takes part.
    """
    if branch == "static":
        assert reading.gains is not None
        ids_BT, keep_BT = reading.segment.input_ids, reading.segment.keep
        if block.label_ids is None:
            return reading.gains.block(ids_BT, keep_BT, block.start, block.stop, k)
        return reading.gains.rows(ids_BT, keep_BT, block.label_ids, k)
    if branch == "pooled":
        # Equal scores: every kept token weighs the same for every label. To show, not to score by.
        documents, labels = len(reading.segment.keep), block.rows["bias"].shape[1]
        even_BKT = reading.segment.hidden.new_zeros(documents, labels, 1)
        even_BKT = even_BKT.expand(-1, -1, reading.segment.keep.shape[1])
        return mask_scores(even_BKT, reading.segment.keep), None
    tokens: PositionTokens | DistinctTokens | None
    if branch == "planted":
        tokens, rows_GKX = reading.planted, block.rows["factor"]
    elif branch == "named":
        tokens, rows_GKX = reading.windows, block.rows["name"]
    else:
        tokens, rows_GKX = reading.asked, block.rows["query"]
    assert tokens is not None
    if k is not None and not reading.short:
        return tokens.best(rows_GKX, k)
    with exactly(rows_GKX):
        scores_BKT = tokens.scores(rows_GKX)
    if k is None:
        return scores_BKT, None
    # Stable, so that of equal tokens the earlier are kept, as everywhere.
    ranked = scores_BKT.sort(dim=-1, descending=True, stable=True)
    return ranked.values[..., :k], ranked.indices[..., :k]


def attended_values(
    boost_GKD: Tensor, reading: Reading, positions: dict[str, Tensor | None]
) -> dict[str, Tensor]:
    """boost · hidden at the tokens that each branch attends.

    Args: positions: branch → (B, K, k) int64, or None where it attends every token.
    Returns: branch → (B, K, k) or (B, K, T).
    """
    kept = {branch: where for branch, where in positions.items() if where is not None}
    values: dict[str, Tensor] = {}
    # A branch that attends every token needs all products anyway.
    if reading.short or len(kept) < len(positions):
        hidden_BTD = reading.segment.hidden
        one_for_all = boost_GKD.shape[0] == 1
        with exactly(hidden_BTD):
            all_BKT = (
                shared_product(boost_GKD[0], hidden_BTD)
                if one_for_all
                else boost_GKD @ hidden_BTD.transpose(1, 2)
            )
        values = {
            branch: all_BKT if where is None else all_BKT.gather(-1, where)
            for branch, where in positions.items()
            if where is None or reading.short
        }
    if kept and not reading.short:
        # One product for the kept tokens of all branches.
        sizes = [where.shape[-1] for where in kept.values()]
        every_BKk = torch.cat(list(kept.values()), dim=-1)
        dots = _kept_scores(boost_GKD, reading.segment.hidden, None, every_BKk)
        values |= dict(zip(kept, torch.split(dots, sizes, dim=-1), strict=True))
    return values


def pooled_token(boost_GKD: Tensor, segment: Segment) -> tuple[Tensor, Tensor]:
    """A segment's mean state as one token that weighs as much as all of them: the pooled branch.

    Returns: scores (B, 1, 1), ln of the tokens kept, -inf without any; values boost · mean,
        (B, K, 1). Softmax over segments then gives the mean over the whole document.
    """
    count_B11 = segment.keep.sum(1)[:, None, None]
    share_B1T = segment.keep[:, None].to(segment.hidden.dtype) / count_B11.clamp_min(1)
    with exactly(segment.hidden):
        mean_BD1 = (share_B1T @ segment.hidden).transpose(1, 2)
        values_BK1 = boost_GKD @ mean_BD1
    return count_B11.to(mean_BD1.dtype).log(), values_BK1


def _masked_product(
    rows_GKX: Tensor, vectors_BTX: Tensor, bias_BT: Tensor | None, keep_BT: Tensor
) -> Tensor:
    """rows · vectors + bias, (B, K, T), -inf where not kept."""
    if rows_GKX.shape[0] == 1 and keep_BT.shape[1] <= SHORT_TOKENS:
        # Thin products, one a document, leave the cores idle: all documents at once.
        scores_BKT = shared_product(rows_GKX[0], vectors_BTX)
        if bias_BT is not None:
            scores_BKT = scores_BKT + bias_BT[:, None]
        return mask_scores(scores_BKT, keep_BT)
    if bias_BT is None:
        bias_BT = torch.zeros_like(keep_BT, dtype=rows_GKX.dtype)
    # The mask rides on the bias, which the product adds in passing.
    bias_B1T = bias_BT.masked_fill(~keep_BT, DROPPED)[:, None]
    rows_BKX = rows_GKX.expand(len(keep_BT), -1, -1)
    return torch.baddbmm(bias_B1T, rows_BKX, vectors_BTX.transpose(1, 2))


def shared_product(rows_KX: Tensor, vectors_BTX: Tensor) -> Tensor:
    """rows · vectors for rows that all documents share, (B, K, T), as one matrix product."""
    documents, tokens, width = vectors_BTX.shape
    dots_KM = rows_KX @ vectors_BTX.reshape(-1, width).t()
    return dots_KM.view(-1, documents, tokens).transpose(0, 1)


def _kept_scores(
    rows_GKX: Tensor, vectors_BTX: Tensor, bias_BT: Tensor | None, kept_BKk: Tensor
) -> Tensor:
    """rows · vectors + bias of the given vectors of each document only, (B, K, k)."""
    documents, tokens = vectors_BTX.shape[:2]
    # Positions become row numbers of the flattened batch: one product for all documents.
    shift_B11 = torch.arange(documents, device=kept_BKk.device)[:, None, None] * tokens
    scores_BKk = kept_dots(rows_GKX, vectors_BTX.flatten(0, 1), kept_BKk + shift_B11)
    return scores_BKk if bias_BT is None else scores_BKk + _pick(bias_BT, kept_BKk)


def _pick(table_BT: Tensor, index_BKk: Tensor) -> Tensor:
    """table[b, index[b, ...]] for every document b."""
    return table_BT.gather(1, index_BKk.flatten(1)).view(index_BKk.shape)


def spread(weights_BKk: Tensor, positions_BKk: Tensor | None, tokens: int) -> Tensor:
    """Weights of kept tokens laid out over all T tokens, (B, K, T)."""
    if positions_BKk is None:
        return weights_BKk
    empty_BKT = weights_BKk.new_zeros(*weights_BKk.shape[:2], tokens)
    # Slots without a token hold weight 0 and position 0: adding them changes nothing.
    return empty_BKT.scatter_add_(-1, positions_BKk, weights_BKk)


def run_block(step: Callable[..., Result], recompute: bool, *arguments: Any) -> Result:
    """Run a step on a block; with `recompute` nothing of it is held until the backward pass."""
    if not recompute:
        return step(*arguments)
    # A block draws no random numbers (dropout falls on the hidden states, before).
    result: Result = checkpoint(step, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result
