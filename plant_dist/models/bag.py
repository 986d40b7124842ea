"""The bag branch: which tokens a document holds, however often and wherever.

Attention normalises away how much of a document speaks for a label, and keeps what speaks for it,
not what speaks against it. A linear model of the document's tokens has both, and is what linear
systems of extreme classification consist of. Here it is low-rank, so that labels learn from each
other and a label costs R numbers: z_l = u_l · d, with u a field of the label rows and d the vector
below. Knows nothing of labels, attention or segments.

Shapes: B documents, T tokens, V vocabulary, H buckets of pairs, F = V + H features, R the bag's
width, X positions' features.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from plant_dist.models.attention import exactly, wide

Ints: TypeAlias = NDArray[np.integer[Any]]

# A vector's length at the start is about SCALE · NOISE · √R. The rate is that of label rows, for
# which vectors of this length learn fast enough (docs/findings.md).
SCALE, NOISE = 24.0, 0.1


class TokenBag(nn.Module):
    """Documents as weighted sums of the factors (F, R) of their tokens, and of pairs of them.

    d = SCALE · Σ_kind Σ_f w_f e_f / ‖w_kind‖₂ over the distinct features f of a document, which are
    of two kinds: its tokens, and its pairs of consecutive tokens, hashed into buckets (Weinberger
    et al. 2009), since a vocabulary of pairs would grow with the corpus. Weights are TF-IDF,
    w_f = (1 + ln n_f) · idf_f of n_f occurrences (Salton and Buckley 1988).

    Buffers: `idf` (F) float32; 0 for features that count nothing.

    Args:
        pair_buckets: H; 0 for a bag of tokens alone.
    """

    idf: Tensor

    def __init__(self, vocabulary_size: int, width: int, pair_buckets: int = 0) -> None:
        super().__init__()
        self.vocabulary_size, self.pair_buckets = vocabulary_size, pair_buckets
        features = vocabulary_size + pair_buckets
        self.factors = nn.Parameter(torch.randn(features, width) * NOISE)
        self.register_buffer("idf", torch.zeros(features))

    @torch.no_grad()
    def plant(self, document_counts_F: Tensor, documents: int) -> None:
        """Fill `idf` from how many of a number of training documents hold each feature (F)."""
        idf_F = smooth_idf(document_counts_F, documents)
        # A pair of one document is learnt by heart and helps no other.
        pairs_F = torch.arange(len(idf_F), device=idf_F.device) >= self.vocabulary_size
        rare_F = pairs_F & (document_counts_F < 2)
        self.idf.copy_(idf_F.masked_fill(rare_F, 0.0))

    def forward(self, input_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return document vectors d (B, R), in float32 or wider.

        Args:
            input_ids_BT: (B, T) int64, all tokens of each document.
            keep_BT: (B, T) bool, the tokens that count. A document that keeps none is 0.
        """
        factors_FR = wide(self.factors)
        features_BX, weight_BX = self._weighted(input_ids_BT, keep_BT)
        vectors: Tensor = embedding_bag(
            features_BX, factors_FR, mode="sum", per_sample_weights=weight_BX.to(factors_FR.dtype)
        )
        return vectors

    def by_position(self, input_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return what each position adds to d, (B, T, R); a pair is its two tokens' in halves."""
        factors_FR = wide(self.factors)
        features_BX, weight_BX = self._weighted(input_ids_BT, keep_BT)
        said_BXR = weight_BX.to(factors_FR.dtype)[..., None] * factors_FR[features_BX]
        length = input_ids_BT.shape[1]
        if not self.pair_buckets:
            return said_BXR
        tokens_BTR, pairs_BTR = said_BXR[:, :length], said_BXR[:, length:] / 2
        first_BT = previous_kept(keep_BT).clamp_min(0)[..., None].expand_as(pairs_BTR)
        return (tokens_BTR + pairs_BTR).scatter_add(1, first_BT, pairs_BTR)

    @torch.no_grad()
    def _weighted(self, input_ids_BT: Tensor, keep_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return features and their weights, (B, X): of positions, then of the pairs they end."""
        weights = self._weights(input_ids_BT, keep_BT, 0, self.vocabulary_size)
        if not self.pair_buckets:
            return input_ids_BT, weights
        first_BT = previous_kept(keep_BT)
        both_BT = keep_BT & (first_BT >= 0)
        pairs_BT = pair_buckets(
            input_ids_BT.gather(1, first_BT.clamp_min(0)), input_ids_BT, self.pair_buckets
        )
        of_pairs = self._weights(pairs_BT, both_BT, self.vocabulary_size, self.pair_buckets)
        features = torch.cat([input_ids_BT, self.vocabulary_size + pairs_BT], 1)
        return features, torch.cat([weights, of_pairs], 1)

    def _weights(self, ids_BT: Tensor, keep_BT: Tensor, start: int, kinds: int) -> Tensor:
        """Return each position's share of SCALE · w / ‖w‖₂, (B, T), for features of one kind;
        positions of one feature share its weight evenly."""
        idf_F = wide(self.idf[start : start + kinds])
        kept_BT = keep_BT.to(idf_F.dtype)
        # B·F counts, whatever the number of labels.
        count_BF = kept_BT.new_zeros(len(kept_BT), kinds)
        count_BF.scatter_add_(1, ids_BT, kept_BT)
        count_BT = count_BF.gather(1, ids_BT).clamp_min(1.0)
        weight_BT = (1 + count_BT.log()) * idf_F[ids_BT] * kept_BT
        # Σ over distinct features of w², each once: its positions hold w²/n apiece.
        norm_B1 = (weight_BT.square() / count_BT).sum(1, keepdim=True).sqrt()
        return SCALE * weight_BT / count_BT / norm_B1.clamp_min(torch.finfo(norm_B1.dtype).tiny)


def previous_kept(keep_BT: Tensor) -> Tensor:
    """Return the last kept position before each, (B, T) int64; -1 where there is none.

    So that a pair reaches over what separates two segments.
    """
    place_T = torch.arange(keep_BT.shape[1], device=keep_BT.device)
    last_BT = torch.where(keep_BT, place_T, -1).cummax(1).values
    return pad(last_BT[:, :-1], (1, 0), value=-1)


def pair_buckets(first: Tensor, second: Tensor, buckets: int) -> Tensor:
    """Return the bucket of each ordered pair of token ids, int64 in [0, buckets)."""
    # Multiplicative hashing by two primes; ids stay far below where the sum would overflow.
    return (first * 1_000_003 + second * 7_919) % buckets


def bucket_rows(tokens: tuple[Ints, Ints], buckets: int) -> tuple[Ints, Ints]:
    """Return the buckets of each document's pairs, as the tokens are given.

    Args: tokens: offsets (n + 1,) and values of the token ids of n documents.
    """
    offsets, values = tokens
    ids = torch.from_numpy(np.asarray(values, dtype=np.int64))
    # A pair ends at every token but a document's first.
    ends = np.ones(len(values), dtype=bool)
    ends[offsets[:-1][np.diff(offsets) > 0]] = False
    of_pairs = pair_buckets(ids[:-1], ids[1:], buckets).numpy()
    lengths = np.maximum(np.diff(offsets) - 1, 0)
    return np.concatenate([[0], np.cumsum(lengths)]), of_pairs[ends[1:]]


def bag_evidence(rows_GKR: Tensor, bag_BR: Tensor) -> Tensor:
    """u_l · d of labels and documents, (B, K).

    Args: rows_GKR: G = 1 for rows that all documents share, else B.
    """
    with exactly(bag_BR):
        if len(rows_GKR) == 1:
            # One product; a batched one would copy the rows for every document.
            return bag_BR @ rows_GKR[0].t()
        return (rows_GKR @ bag_BR[..., None])[..., 0]


def smooth_idf(document_counts_F: Tensor, documents: int) -> Tensor:
    """Return ln((1 + N) / (1 + n_f)) + 1 of each feature, (F,) float32; 0 where n_f is 0.

    The smooth form of scikit-learn's TfidfTransformer.

    Args:
        document_counts_F: (F,) int64, training documents that hold each feature.
        documents: N.
    """
    counts_F = document_counts_F.double()
    idf_F = ((1 + documents) / (1 + counts_F)).log() + 1
    return idf_F.masked_fill(document_counts_F == 0, 0.0).float()
