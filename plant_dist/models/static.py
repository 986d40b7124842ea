"""The static branch: token gains as buffers, and each label's best tokens in a document.

Gains are kept sparsely, by label and by token. A block of labels is served from the tokens' side,
at a cost of the matches between the document's tokens and the block; a few chosen labels from
their own side, at a cost of their stored tokens. Both return log gains, so that the softmax that
every other branch uses gives gains normalised to sum 1. Knows nothing of learned parameters.

Shapes: B documents, T tokens, K labels considered, L labels, k tokens kept, J stored pairs,
N = B·K (document, label) pairs, H hits (a real position whose token is stored for a label),
P items that are expanded to hits, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from plant_dist.errors import ArtifactError
from plant_dist.models.attention import DROPPED


class StaticGains(nn.Module):
    """Normalised gains J(t, l) of the stored token-label pairs, in buffers of fixed size.

    Buffers: `offsets` (L+1) int64, `tokens` (J) int32 and `gains` (J) float32, by label and by
    falling gain within it; what is derived from them is worked out on first use and never saved.

    Args:
        label_count: labels L.
        vocabulary_size: token ids are in [0, V).
        pairs: stored pairs, so that a checkpoint finds buffers of its own size.
    """

    offsets: Tensor
    tokens: Tensor
    gains: Tensor

    def __init__(self, label_count: int, vocabulary_size: int, pairs: int) -> None:
        super().__init__()
        self.label_count = label_count
        self.vocabulary_size = vocabulary_size
        # Until they are filled, all pairs are the last label's, with gain 0, which weighs nothing.
        offsets = torch.zeros(label_count + 1, dtype=torch.int64)
        offsets[-1] = pairs
        self.register_buffer("offsets", offsets)
        self.register_buffer("tokens", torch.zeros(pairs, dtype=torch.int32))
        self.register_buffer("gains", torch.zeros(pairs, dtype=torch.float32))
        # Not buffers: they follow from the gains and would double a checkpoint.
        self._postings: tuple[Tensor, Tensor] | None = None
        self._levels: tuple[Tensor, int] | None = None
        self.register_load_state_dict_post_hook(_forget_derived)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def fill(self, offsets: Tensor, tokens: Tensor, gains: Tensor) -> None:
        """Store the gains: by label, falling within a label.

        Raises:
            ArtifactError: sizes differ from those this module was made for, a token lies outside
                the vocabulary, or gains rise within a label.
        """
        found = (len(offsets) - 1, len(tokens), len(gains), int(offsets[-1]))
        pairs = len(self.tokens)
        if found != (self.label_count, pairs, pairs, pairs):
            raise ArtifactError(
                f"static gains have (labels, tokens, gains, last offset) {found}; the model was "
                f"made for {(self.label_count, pairs, pairs, pairs)}; run `mig` and `train` again"
            )
        outside = (tokens < 0) | (tokens >= self.vocabulary_size)
        if bool(outside.any()):
            raise ArtifactError(
                f"static gains name token {int(tokens[outside][0])}; the vocabulary has "
                f"{self.vocabulary_size}; rebuild the gains with this tokenizer"
            )
        label_J = torch.repeat_interleave(offsets.diff())
        # A place within a label stands for the rank of its gain, so order is a condition.
        rises = (gains[1:] > gains[:-1]) & (label_J[1:] == label_J[:-1])
        if bool(rises.any()):
            raise ArtifactError(
                f"static gains of label {int(label_J[1:][rises][0])} rise; sort each label's "
                "tokens by falling gain"
            )
        self.offsets.copy_(offsets)
        self.tokens.copy_(tokens)
        self.gains.copy_(gains)
        self.forget_derived()

    @torch.no_grad()
    def block(
        self, input_ids_BT: Tensor, keep_BT: Tensor, start: int, stop: int, k: int | None
    ) -> tuple[Tensor, Tensor]:
        """Best positions of each document for the labels start … stop-1.

        Args:
            input_ids_BT: (B, T) int64.
            keep_BT: (B, T) bool, the tokens that may be attended.
            k: positions kept per label; None keeps all that hit.
        Returns: log gains (B, K, k) float64 in falling order, -inf where a document has fewer
            hits, and positions (B, K, k) int64, 0 there. Equal gains keep earlier positions.
        """
        documents, tokens = input_ids_BT.shape
        keys_J, pairs_J = self._by_token()
        spot_P = keep_BT.reshape(-1).nonzero()[:, 0]
        # A key is token · L + label in int64: past 2³¹ for a large vocabulary.
        base_P = input_ids_BT.reshape(-1)[spot_P] * self.label_count
        # A token's labels lie side by side, so those of a block are one stretch.
        low_P = torch.searchsorted(keys_J, base_P + start)
        high_P = torch.searchsorted(keys_J, base_P + stop)
        owner_H, copy_H = _expanded(high_P - low_P)
        match_H = low_P[owner_H] + copy_H
        spot_H = spot_P[owner_H]
        label_H = keys_J[match_H] - base_P[owner_H] - start
        row_H = spot_H.div(tokens, rounding_mode="floor") * (stop - start) + label_H
        label_ids_BK = torch.arange(start, stop, device=row_H.device).expand(documents, -1)
        return self._best(row_H, pairs_J[match_H], spot_H % tokens, label_ids_BK, tokens, k)

    @torch.no_grad()
    def rows(
        self, input_ids_BT: Tensor, keep_BT: Tensor, label_ids_BK: Tensor, k: int | None
    ) -> tuple[Tensor, Tensor]:
        """Best positions of each document for its own labels; as `block`, for (B, K) label ids."""
        tokens, labels = input_ids_BT.shape[1], label_ids_BK.shape[1]
        # B·(V + 1) counts, whatever the number of labels; each lookup is then one read.
        order_BT, first_BV, count_BV = _occurrences(input_ids_BT, keep_BT, self.vocabulary_size)
        label_N = label_ids_BK.reshape(-1)
        start_N = self.offsets[label_N]
        row_P, item_P = _expanded(self.offsets[label_N + 1] - start_N)
        pair_P = start_N[row_P] + item_P
        document_P = row_P.div(labels, rounding_mode="floor")
        entry_P = document_P * count_BV.shape[1] + self.tokens[pair_P]
        owner_H, copy_H = _expanded(count_BV.reshape(-1)[entry_P])
        place_P = document_P * tokens + first_BV.reshape(-1)[entry_P]
        position_H = order_BT.reshape(-1)[place_P[owner_H] + copy_H]
        return self._best(row_P[owner_H], pair_P[owner_H], position_H, label_ids_BK, tokens, k)

    def _best(
        self,
        row_H: Tensor,
        pair_H: Tensor,
        position_H: Tensor,
        label_ids_BK: Tensor,
        tokens: int,
        k: int | None,
    ) -> tuple[Tensor, Tensor]:
        """The k best hits of each (document, label) row, by falling gain, then position."""
        level_J, levels = self._by_gain()
        # One integer says it all: row, level of the gain, position. Sorting it sorts the hits.
        key_H = (row_H * levels + level_J[pair_H]) * tokens + position_H
        key_H = key_H.sort().values
        level_H = key_H.div(tokens, rounding_mode="floor")
        row_H = level_H.div(levels, rounding_mode="floor")
        hits_N = torch.bincount(row_H, minlength=label_ids_BK.numel())
        # Without k the widest row decides; one column at least, for shape.
        kept = k if k is not None else max(int(hits_N.max()), 1)
        # Sorted hits of a row are one stretch, so places count from its start.
        place_H = torch.arange(len(row_H), device=row_H.device) - (hits_N.cumsum(0) - hits_N)[row_H]
        taken_H = place_H < kept
        row_H, level_H = row_H[taken_H], level_H[taken_H] % levels
        slot_H = row_H * kept + place_H[taken_H]
        # A level is the place of the first equal gain: that pair's gain is this one's.
        pair_H = self.offsets[label_ids_BK.reshape(-1)[row_H]] + level_H
        shape = (*label_ids_BK.shape, kept)
        scores = torch.full(shape, DROPPED, dtype=torch.float64, device=slot_H.device)
        positions = torch.zeros(shape, dtype=torch.int64, device=slot_H.device)
        # Softmax over ln J is J normalised to sum 1 (docs/decisions.md, 2).
        scores.view(-1)[slot_H] = self.gains[pair_H].double().log()
        positions.view(-1)[slot_H] = key_H[taken_H] % tokens
        return scores, positions

    def forget_derived(self) -> None:
        """Drop what was derived from the gains, because they have changed."""
        self._postings = self._levels = None

    def _by_token(self) -> tuple[Tensor, Tensor]:
        """Keys token·L + label in rising order, (J) int64, and the stored pair of each key."""
        # Plain attributes do not move with the module.
        if self._postings is None or self._postings[0].device != self.tokens.device:
            label_J = torch.repeat_interleave(self.offsets.diff())
            keys_J, pairs_J = torch.sort(self.tokens.long() * self.label_count + label_J)
            self._postings = keys_J, pairs_J.to(self._pair_dtype())
        return self._postings

    def _by_gain(self) -> tuple[Tensor, int]:
        """Place of each pair among its label's, (J), and a number above every place.

        Equal gains share the place of their first, so that positions decide among them.
        """
        if self._levels is None or self._levels[0].device != self.tokens.device:
            label_J = torch.repeat_interleave(self.offsets.diff())
            leads_J = torch.ones_like(label_J, dtype=torch.bool)
            leads_J[1:] = (label_J[1:] != label_J[:-1]) | (self.gains[1:] != self.gains[:-1])
            own_J = torch.arange(len(label_J), device=label_J.device)
            level_J = own_J.masked_fill(~leads_J, 0).cummax(0).values - self.offsets[label_J]
            levels = int(level_J.max()) + 1 if len(level_J) else 1
            self._levels = level_J.to(self._pair_dtype()), levels
        return self._levels

    def _pair_dtype(self) -> torch.dtype:
        """The smallest integer that numbers the pairs: there may be hundreds of millions."""
        return torch.int32 if len(self.tokens) < 2**31 else torch.int64


def _forget_derived(module: nn.Module, incompatible_keys: Any) -> None:
    """After a checkpoint is loaded, what was derived belongs to other gains."""
    assert isinstance(module, StaticGains)
    module.forget_derived()


def _expanded(counts_P: Tensor) -> tuple[Tensor, Tensor]:
    """Write item i counts[i] times: the item of each entry, and its copy's number from 0."""
    owner_H = torch.repeat_interleave(counts_P)
    before_P = counts_P.cumsum(0) - counts_P
    return owner_H, torch.arange(len(owner_H), device=owner_H.device) - before_P[owner_H]


def _occurrences(
    input_ids_BT: Tensor, keep_BT: Tensor, vocabulary_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each token stands in each document.

    Returns: positions sorted by token (B, T), and for each token the first place in that order
        (B, V+1) and the number of places (B, V+1), V standing for tokens that are not kept.
    """
    # Id V is no label's, so a dropped position can never be a hit.
    ids_BT = input_ids_BT.masked_fill(~keep_BT, vocabulary_size)
    order_BT = ids_BT.argsort(dim=1, stable=True)
    count_BV = torch.zeros(
        len(ids_BT), vocabulary_size + 1, dtype=torch.int64, device=ids_BT.device
    ).scatter_add_(1, ids_BT, torch.ones_like(ids_BT))
    return order_BT, count_BV.cumsum(1) - count_BV, count_BV
