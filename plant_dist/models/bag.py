"""The bag branch: which tokens a document holds, however often and wherever.

Attention normalises away how much of a document speaks for a label, and keeps what speaks for it,
not what speaks against it. A linear model of the document's tokens has both, and is what linear
systems of extreme classification consist of. Here it is low-rank, so that labels learn from each
other and a label costs R numbers: z_l = u_l · d, with u a field of the label rows and d the vector
below. Knows nothing of labels, attention or segments.

Shapes: B documents, T tokens, V vocabulary, R width of the bag.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from plant_dist.models.attention import wide

# A vector's length at the start is about SCALE · NOISE · √R. The rate is that of label rows, for
# which vectors of this length learn fast enough (docs/findings.md).
SCALE, NOISE = 24.0, 0.1


class TokenBag(nn.Module):
    """Documents as weighted sums of token factors e (V, R).

    d = SCALE · Σ_t w_t e_t / ‖w‖₂ over the distinct tokens t of a document, with the TF-IDF weight
    w_t = (1 + ln n_t) · idf_t of n_t occurrences (Salton and Buckley 1988).

    Buffers: `idf` (V) float32; 0 for tokens that no training document holds, which count nothing.
    """

    idf: Tensor

    def __init__(self, vocabulary_size: int, width: int) -> None:
        super().__init__()
        self.factors = nn.Parameter(torch.randn(vocabulary_size, width) * NOISE)
        self.register_buffer("idf", torch.zeros(vocabulary_size))

    def forward(self, input_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return document vectors d (B, R), in float32 or wider.

        Args:
            input_ids_BT: (B, T) int64, all tokens of each document.
            keep_BT: (B, T) bool, the tokens that count. A document that keeps none is 0.
        """
        factors_VR = wide(self.factors)
        weight_BT = self.weights(input_ids_BT, keep_BT).to(factors_VR.dtype)
        vectors: Tensor = embedding_bag(
            input_ids_BT, factors_VR, mode="sum", per_sample_weights=weight_BT
        )
        return vectors

    def by_position(self, input_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return what each position adds to d, (B, T, R)."""
        factors_VR = wide(self.factors)
        weight_BT = self.weights(input_ids_BT, keep_BT).to(factors_VR.dtype)
        return weight_BT[..., None] * factors_VR[input_ids_BT]

    @torch.no_grad()
    def weights(self, input_ids_BT: Tensor, keep_BT: Tensor) -> Tensor:
        """Return each position's share of SCALE · w_t / ‖w‖₂, (B, T); positions of one token share
        its weight evenly."""
        idf_V = wide(self.idf)
        kept_BT = keep_BT.to(idf_V.dtype)
        # B·V counts, whatever the number of labels.
        count_BV = kept_BT.new_zeros(len(kept_BT), len(idf_V))
        count_BV.scatter_add_(1, input_ids_BT, kept_BT)
        count_BT = count_BV.gather(1, input_ids_BT).clamp_min(1.0)
        weight_BT = (1 + count_BT.log()) * idf_V[input_ids_BT] * kept_BT
        # Σ over distinct tokens of w², each token once: its positions hold w²/n apiece.
        norm_B1 = (weight_BT.square() / count_BT).sum(1, keepdim=True).sqrt()
        return SCALE * weight_BT / count_BT / norm_B1.clamp_min(torch.finfo(norm_B1.dtype).tiny)


def bag_evidence(rows_GKR: Tensor, bag_BR: Tensor) -> Tensor:
    """u_l · d of labels and documents, (B, K).

    Args: rows_GKR: G = 1 for rows that all documents share, else B.
    """
    if len(rows_GKR) == 1:
        # One product; a batched one would copy the rows for every document.
        return bag_BR @ rows_GKR[0].t()
    return (rows_GKR @ bag_BR[..., None])[..., 0]


def smooth_idf(document_counts_V: Tensor, documents: int) -> Tensor:
    """Return ln((1 + N) / (1 + n_t)) + 1 of each token, (V,) float32; 0 where n_t is 0.

    The smooth form of scikit-learn's TfidfTransformer.

    Args:
        document_counts_V: (V,) int64, training documents that hold each token.
        documents: N.
    """
    counts_V = document_counts_V.double()
    idf_V = ((1 + documents) / (1 + counts_V)).log() + 1
    return idf_V.masked_fill(document_counts_V == 0, 0.0).float()
