"""Graded lists of positions: where in its documents a label's tokens stand, and among what.

For pairs of a document and one of its gold labels, grades every position by its token, keeps what
is held out apart from what is trained on, and draws positions. Beside them stand strangers: tokens
of other documents, the same for every list. Without them rarity alone would rank a list, for of the
tokens of a rare label's document nearly all rare ones are its own; among strangers as rare it must
learn which. All of it runs on the batch's device, and every draw is a hash of document, label and
position, so that a list does not depend on what else is in the batch. Must not know hidden states,
scores or losses.

B documents, T tokens, S strangers, N pairs, E tokens of a label's list, M drawn positions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from plant_dist.config.schema import RankConfig
from plant_dist.data.batches import Batch
from plant_dist.mig.graded import GradedLists, ReservedPairs, padded_entries

NO_TOKEN = torch.iinfo(torch.int64).max  # behind every token id


class LabelPairs(NamedTuple):
    """Pairs of a document and a gold label, with the label's graded tokens.

    Attributes:
        document: (N,) int64, rising, places in the batch. row: (N,) int64, the same in the split.
        label: (N,) int64.
        tokens: (N, E) int64, rising ids, padded with `NO_TOKEN`.
        grades: (N, E) int64. held_out: (N, E) bool.
    """

    document: Tensor
    row: Tensor
    label: Tensor
    tokens: Tensor
    grades: Tensor
    held_out: Tensor

    def to(self, device: torch.device) -> LabelPairs:
        """Return the pairs on a device."""
        return LabelPairs(*(part.to(device, non_blocking=True) for part in self))


class PositionLists(NamedTuple):
    """Lists of positions to be ranked for a label, each with two unlike grades at least.

    Attributes:
        document, label: (N,) int64, as in `LabelPairs`.
        positions: (N, M) int64, strangers in [0, S), then places in the document in [S, S + T),
            so that no number hangs on the padding.
        grades: (N, M) int64, 0 where masked, and of strangers.
        mask: (N, M) bool, False for padding.
    """

    document: Tensor
    label: Tensor
    positions: Tensor
    grades: Tensor
    mask: Tensor


class GradedPositions(NamedTuple):
    """Every position: grades (N, S + T) int64; graded, other and stranger (N, S + T) bool.

    A stranger of the label's own list is none of the three: nobody said what it means elsewhere.
    """

    grades: Tensor
    graded: Tensor
    other: Tensor
    stranger: Tensor


def label_pairs(batch: Batch, lists: GradedLists, most: int, seed: int) -> LabelPairs:
    """The pairs of a batch's real documents and their gold labels, on the batch's device.

    Args:
        batch: documents with gold labels, on the CPU.
        lists: graded tokens of every label.
        most: labels of one document at most; a draw decides which.
        seed: of that draw.
    """
    document_N = torch.repeat_interleave(torch.arange(batch.documents), batch.label_offsets.diff())
    keys_N = scrambled(_pair_keys(batch.rows[document_N], batch.label_ids) ^ seed)
    # Shuffle the labels inside each document: by key first, then stably by document.
    order_N = keys_N.argsort()
    order_N = order_N[document_N[order_N].argsort(stable=True)]
    place_N = torch.arange(len(order_N)) - batch.label_offsets[document_N]
    # Fillers weigh 0: they make ranks' batches equal and are learnt nothing from.
    kept_N = (place_N < most) & (batch.weights[document_N] > 0)
    document_N, label_N = document_N[kept_N], batch.label_ids[order_N][kept_N]

    entries = padded_entries(lists, label_N.numpy())
    tokens_NE = np.where(entries.there, entries.tokens, NO_TOKEN)
    # By token id, so that positions find their tokens by binary search on any device.
    sorted_NE, by_token_NE = torch.from_numpy(tokens_NE).sort(dim=1)
    return LabelPairs(
        document_N,
        batch.rows[document_N],
        label_N,
        sorted_NE,
        torch.from_numpy(entries.grades).gather(1, by_token_NE),
        torch.from_numpy(entries.held_out).gather(1, by_token_NE),
    )


def training_lists(
    pairs: LabelPairs,
    input_ids_BT: Tensor,
    keep_BT: Tensor,
    strangers_S: Tensor,
    reserved: ReservedPairs,
    config: RankConfig,
    seed: int,
) -> PositionLists:
    """Draw a list for each pair from what may be trained on: graded, other, and all strangers.

    Args:
        pairs: on the device of the other tensors.
        input_ids_BT: (B, T) int64.
        keep_BT: (B, T) bool, positions that labels may attend.
        strangers_S: (S,) int64 token ids, at most `sampled_tokens`.
        reserved: pairs of label and token that training never sees.
        config: `list_tokens` graded and `sampled_tokens` other positions at most, strangers among
            them.
        seed: the same seed draws the same lists; see `stream`.

    Returns: lists of pairs whose documents hold two unlike grades.
    """
    found = graded_positions(pairs, input_ids_BT, keep_BT, strangers_S, reserved, held_out=False)
    strangers = len(strangers_S)
    keys_NX = position_keys(pairs, input_ids_BT.shape[1] + strangers, seed)
    drawn = (
        _first_by(keys_NX, found.graded, config.list_tokens),
        _first_by(keys_NX, found.other, config.sampled_tokens - strangers),
        _first_by(keys_NX, found.stranger, strangers),
    )
    positions_NM, mask_NM = (torch.cat(parts, dim=1) for parts in zip(*drawn, strict=True))
    return _ranked_lists(pairs, positions_NM, found.grades, mask_NM)


def held_out_lists(
    pairs: LabelPairs,
    input_ids_BT: Tensor,
    keep_BT: Tensor,
    strangers_S: Tensor,
    reserved: ReservedPairs,
    seed: int,
) -> PositionLists:
    """List all reserved positions and strangers for each pair, in an order that is drawn.

    Held-out tokens have their grades, the others 0. None of them was ever in a training list of the
    label, so that chance scores as chance; equal scores fall as the order does, by chance.
    """
    found = graded_positions(pairs, input_ids_BT, keep_BT, strangers_S, reserved, held_out=True)
    candidates_NX = found.graded | found.other | found.stranger
    keys_NX = position_keys(pairs, candidates_NX.shape[1], seed)
    # As wide as the longest list needs: all candidates are ranked, none is sampled.
    longest = int(candidates_NX.sum(dim=1).max()) if len(candidates_NX) else 0
    positions_NM, mask_NM = _first_by(keys_NX, candidates_NX, max(longest, 1))
    return _ranked_lists(pairs, positions_NM, found.grades, mask_NM)


def graded_positions(
    pairs: LabelPairs,
    input_ids_BT: Tensor,
    keep_BT: Tensor,
    strangers_S: Tensor,
    reserved: ReservedPairs,
    held_out: bool,
) -> GradedPositions:
    """Grade the positions of each pair's document, and strangers, by its label's list.

    Args:
        held_out: what is held out and reserved, instead of what training may see.
    """
    strangers_NS = strangers_S.expand(len(pairs.label), -1)
    ids_NX = torch.cat([strangers_NS, input_ids_BT[pairs.document]], dim=1)
    keep_NX = torch.cat([torch.ones_like(strangers_NS).bool(), keep_BT[pairs.document]], dim=1)
    own_X = torch.arange(ids_NX.shape[1], device=ids_NX.device) >= len(strangers_S)
    # The search may end behind the last entry or at another token; the next line tells.
    place_NX = torch.searchsorted(pairs.tokens, ids_NX).clamp(max=pairs.tokens.shape[1] - 1)
    listed_NX = pairs.tokens.gather(1, place_NX) == ids_NX
    held_NX = pairs.held_out.gather(1, place_NX) == held_out
    # A listed token follows its flag, not the hash: a label keeps its best token for training
    # though all of its tokens be reserved.
    apart_NX = reserved_pairs(reserved, pairs.label[:, None], ids_NX) == held_out
    graded_NX = keep_NX & listed_NX & held_NX & own_X
    grades_NX = pairs.grades.gather(1, place_NX) * graded_NX
    unlisted_NX = keep_NX & ~listed_NX & apart_NX
    return GradedPositions(grades_NX, graded_NX, unlisted_NX & own_X, unlisted_NX & ~own_X)


def _first_by(keys_NX: Tensor, allowed_NX: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Up to `most` allowed positions by falling key, and which of them are there: (N, M)."""
    # Keys are 0 or more, so -1 sorts last and marks what was not allowed.
    first = keys_NX.masked_fill(~allowed_NX, -1).topk(min(most, keys_NX.shape[1]), dim=1)
    return first.indices, first.values >= 0


def _ranked_lists(
    pairs: LabelPairs, positions_NM: Tensor, grades_NX: Tensor, mask_NM: Tensor
) -> PositionLists:
    """The lists that hold two unlike grades; the others cannot be ranked well or badly."""
    grades_NM = grades_NX.gather(1, positions_NM) * mask_NM
    # Masked grades are 0, which raises no maximum; for the minimum they must be out of the way.
    best_N = grades_NM.amax(dim=1)
    worst_N = grades_NM.masked_fill(~mask_NM, NO_TOKEN).amin(dim=1)
    ranked_N = best_N > worst_N
    parts = pairs.document, pairs.label, positions_NM, grades_NM, mask_NM
    return PositionLists(*(part[ranked_N] for part in parts))


def stream(*numbers: int) -> int:
    """A seed for the draws of this module from numbers such as seed, epoch and step."""
    # 63 bits, since torch's integers have a sign.
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def position_keys(pairs: LabelPairs, width: int, seed: int) -> Tensor:
    """(N, T) int64 from 0: a uniform number for each position, by row, label and seed alone."""
    start_N = scrambled(_pair_keys(pairs.row, pairs.label) ^ seed)
    place_T = torch.arange(width, device=pairs.label.device)
    return _shifted(scrambled(start_N[:, None] + place_T), 1)


def reserved_pairs(reserved: ReservedPairs, labels: Tensor, tokens: Tensor) -> Tensor:
    """`ReservedPairs.holds` on any device: bool, of the broadcast shape of labels and tokens."""
    seed = scrambled(torch.tensor(reserved.seed, device=tokens.device))
    share = _shifted(scrambled(_pair_keys(labels, tokens) ^ seed), 11)
    # In integers, which every device compares exactly: share / 2^53 < fraction.
    return share < math.ceil(reserved.fraction * 2**53)


def _pair_keys(high: Tensor, low: Tensor) -> Tensor:
    # The key of `mig.graded.ReservedPairs`: both sides must agree on what is reserved.
    return (high << 32) + low


def scrambled(values: Tensor) -> Tensor:
    """SplitMix64 (Steele, Lea and Flood, 2014) in int64, whose sums and products wrap alike."""
    values = values + _signed(0x9E3779B97F4A7C15)
    values = (values ^ _shifted(values, 30)) * _signed(0xBF58476D1CE4E5B9)
    values = (values ^ _shifted(values, 27)) * _signed(0x94D049BB133111EB)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right as unsigned: int64's own shift would repeat the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def _signed(unsigned: int) -> int:
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned
