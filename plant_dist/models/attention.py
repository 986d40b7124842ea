"""Label attention as pure functions: softmax under a mask, inattention, streaming carries.

Scores of dropped tokens are -inf here, never 0, so a dropped token has weight exactly 0 and a
document without a token has weight 0 everywhere instead of NaN. A label's logit needs only the
numbers `boost_l · h_t` at the tokens that label keeps, so contexts of width D are never summed
up for an inattentive branch: `kept_dots` computes just those products. Knows nothing of branches,
gates, label tables or encoders.

Shapes: B documents, T tokens, K labels considered, G = B or 1 (rows shared by all documents),
k tokens kept per label, M token vectors, X their width.
"""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad, scaled_dot_product_attention

DROPPED = float("-inf")


def wide(numbers: Tensor) -> Tensor:
    """At least float32, so that half-precision states and rows meet in one dtype."""
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))


def exactly(like: Tensor) -> AbstractContextManager[Any]:
    """Leave autocast where no gradient is asked for: products here are what labels are ranked by,
    and bf16 has 256 numbers between 1 and 2, on which most labels tie. Training keeps its
    precision: a gradient averages what one product rounds."""
    if torch.is_grad_enabled():
        return nullcontext()
    left: AbstractContextManager[Any] = torch.autocast(like.device.type, enabled=False)
    return left


def mask_scores(scores_BKT: Tensor, keep_BT: Tensor) -> Tensor:
    """Return the scores with -inf at every token that may not be attended."""
    return scores_BKT.masked_fill(~keep_BT[:, None, :], DROPPED)


def softmax_kept(scores: Tensor) -> Tensor:
    """Softmax over the last axis where -inf means dropped.

    Args: scores: (..., T) float; -inf marks a dropped token.
    Returns: (..., T) weights, exactly 0 at dropped tokens; a row that drops all is all 0, and
        neither it nor its gradient is NaN.
    """
    # Less the largest score no exponent overflows; it cancels in the quotient.
    peak = _finite_peak(scores)
    mass_terms = torch.exp(scores - peak)
    mass = mass_terms.sum(-1, keepdim=True)
    # The largest kept term is e^0, so mass is 0 only where nothing is kept.
    return mass_terms / mass.masked_fill(mass == 0, 1.0)


def masked_softmax(scores_BKT: Tensor, keep_BT: Tensor) -> Tensor:
    """Softmax over real tokens.

    Args:
        scores_BKT: (B, K, T) float.
        keep_BT: (B, T) bool, the tokens that may be attended.
    Returns: (B, K, T) weights summing to 1, or to 0 for a document that keeps no token.
    """
    return softmax_kept(mask_scores(scores_BKT, keep_BT))


def keep_largest(scores_BKT: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Pick the k largest scores of each label.

    Args:
        scores_BKT: (B, K, T), -inf at dropped tokens.
        k: tokens to keep; None keeps all.
    Returns: scores (B, K, min(k, T)) in no particular order, -inf where a document holds fewer
        tokens, and their positions, int64.
    """
    tokens = scores_BKT.shape[-1]
    if k is None or k >= tokens:
        positions = torch.arange(tokens, device=scores_BKT.device)
        return scores_BKT, positions.expand(scores_BKT.shape)
    # Softmax needs no order, so topk is spared the sorting.
    kept = scores_BKT.topk(k, dim=-1, sorted=False)
    return kept.values, kept.indices


def inattention(scores_BKT: Tensor, keep_BT: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """Attend exactly the k best real tokens (fewer if the document has fewer), all others 0.

    Args:
        scores_BKT: (B, K, T) float.
        keep_BT: (B, T) bool.
        k: tokens kept per label; None is the full softmax.
    Returns: weights (B, K, min(k, T)) summing to 1 (0 for an empty document), and the positions
        they belong to, int64. Source: PLANT (arXiv 2410.23066), with -inf before the softmax in
        place of the reference's 0, which would beat every negative score.
    """
    scores_BKk, positions_BKk = keep_largest(mask_scores(scores_BKT, keep_BT), k)
    return softmax_kept(scores_BKk), positions_BKk


def attend_all(query_GKX: Tensor, tokens_BTX: Tensor, keep_BT: Tensor) -> Tensor:
    """Contexts under full attention, softmax_t(q·h_t / √X) · h, without a B×K×T array.

    Returns: (B, K, X); 0 for a document that keeps no token. Torch's fused attention kernels
        take labels as queries and tokens as both keys and values.
    """
    filled_B = keep_BT.any(dim=1)
    # A row with nothing to attend is undefined in the kernels: attend all, then drop the result.
    mask_BT = keep_BT | ~filled_B[:, None]
    documents = tokens_BTX.shape[0]
    # One head: the kernels want (batch, heads, length, width).
    tokens_B1TX = tokens_BTX[:, None]
    context_B1KX = scaled_dot_product_attention(
        query_GKX.expand(documents, -1, -1)[:, None],
        tokens_B1TX,
        tokens_B1TX,
        attn_mask=mask_BT[:, None, None, :],  # one row a document, or B×K×T would be held
    )
    return context_B1KX[:, 0] * filled_B[:, None, None]


def kept_dots(rows_GKX: Tensor, vectors_MX: Tensor, index_BKk: Tensor) -> Tensor:
    """Inner products of each label row with its own few token vectors, and no others.

    Args:
        rows_GKX: (G, K, X); G = 1 shares the rows among the documents.
        vectors_MX: (M, X) token vectors of the whole batch.
        index_BKk: (B, K, k) int64, which vectors each label of each document keeps.
    Returns: (B, K, k), float32 or wider. Forward and backward do B·K·k·X work, so neither time
        nor memory grows with the tokens that are not kept. Differentiable once.
    """
    shared = rows_GKX.shape[0] == 1
    documents, labels, kept = index_BKk.shape
    # One sparse row per label row: all documents side by side where they share it.
    index_BKk = index_BKk.transpose(0, 1) if shared else index_BKk
    rows_NX = wide(rows_GKX).reshape(-1, rows_GKX.shape[-1])
    columns_Nj = index_BKk.reshape(rows_NX.shape[0], -1)
    # Wide whatever the caller's precision: these are scores, and ties must be exact.
    with torch.autocast(rows_GKX.device.type, enabled=False):
        # Columns are kept for the backward pass, where int32 halves them.
        dots_Nj: Tensor = _KeptDots.apply(  # type: ignore[no-untyped-call]
            rows_NX, wide(vectors_MX), columns_Nj.to(torch.int32)
        )
    if shared:
        return dots_Nj.view(labels, documents, kept).transpose(0, 1)
    return dots_Nj.view(documents, labels, kept)


def first_slots(counts: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Deal k slots to items in their order, each item taking as many as it has copies.

    Args: counts: (..., M) int64, copies of each item (occurrences of each token).
    Returns: item (..., k) int64, copy (..., k) int64 counted from 0, and filled (..., k) bool,
        False once the copies run out (item and copy are then 0).
    """
    # Slot n goes to the first item whose running total is above n, so an item without
    # copies gets none; contiguous, as searchsorted wants its values.
    taken = counts.cumsum(-1)
    slots = torch.arange(k, device=counts.device).expand(*counts.shape[:-1], k).contiguous()
    item = torch.searchsorted(taken, slots, right=True)
    filled = slots < taken[..., -1:]
    item = item.masked_fill(~filled, 0)
    copy = slots - (taken - counts).gather(-1, item)
    return item, copy.masked_fill(~filled, 0), filled


class SoftmaxCarry(NamedTuple):
    """Full attention in progress: what a label remembers of the segments read so far.

    `peak`, `mass` and `total` are (B, K): the largest score, Σ e^(score-peak), and the same sum
    weighted by the values. Source: online softmax (Milakov and Gimelshein, 2018).
    """

    peak: Tensor
    mass: Tensor
    total: Tensor

    @classmethod
    def start(cls, like_BK: Tensor) -> SoftmaxCarry:
        """Nothing read yet; dtype and device of `like_BK`."""
        zero = torch.zeros_like(like_BK)
        return cls(torch.full_like(like_BK, DROPPED), zero, zero)

    def update(self, scores_BKT: Tensor, values_BKT: Tensor) -> SoftmaxCarry:
        """Read a segment: (B, K, T) scores, -inf where dropped, and values attended."""
        peak = torch.maximum(self.peak, scores_BKT.detach().amax(-1))
        # The peak cancels in total/mass, so it takes no gradient.
        # -inf less -inf is NaN where nothing has been kept so far.
        safe = peak.masked_fill(peak == DROPPED, 0.0)
        # What was summed under an older peak is rescaled to the new one.
        shrink = torch.exp(self.peak - safe)
        terms_BKT = torch.exp(scores_BKT - safe[..., None])
        return SoftmaxCarry(
            peak,
            self.mass * shrink + terms_BKT.sum(-1),
            self.total * shrink + (terms_BKT * values_BKT).sum(-1),
        )

    def result(self) -> Tensor:
        """Return the attended value, (B, K); 0 where no token was kept."""
        return self.total / self.mass.masked_fill(self.mass == 0, 1.0)


class TopkCarry(NamedTuple):
    """Inattention in progress: the k best tokens so far, `scores` and `values` (B, K, ≤ k)."""

    k: int
    scores: Tensor
    values: Tensor

    @classmethod
    def start(cls, like_BK: Tensor, k: int) -> TopkCarry:
        """Nothing read yet; dtype and device of `like_BK`."""
        none_BK0 = like_BK[..., None][..., :0]
        return cls(k, none_BK0, none_BK0)

    def update(self, scores_BKj: Tensor, values_BKj: Tensor) -> TopkCarry:
        """Read a segment's candidates: (B, K, j) scores, -inf where dropped, and values."""
        scores = torch.cat([self.scores, scores_BKj], -1)
        values = torch.cat([self.values, values_BKj], -1)
        if scores.shape[-1] > self.k:
            # Stable, so that among equal scores earlier tokens stay, as in a document read at once.
            where = scores.detach().sort(dim=-1, descending=True, stable=True).indices
            where = where[..., : self.k]
            scores, values = scores.gather(-1, where), values.gather(-1, where)
        return TopkCarry(self.k, scores, values)

    def result(self) -> Tensor:
        """Return the attended value, (B, K); 0 where no token was kept."""
        return (softmax_kept(self.scores) * self.values).sum(-1)


def _finite_peak(scores: Tensor) -> Tensor:
    """Largest score of each row without gradient, 0 where every score is -inf."""
    if scores.shape[-1] == 0:
        return scores.new_zeros(*scores.shape[:-1], 1)
    peak = scores.detach().amax(-1, keepdim=True)
    return peak.masked_fill(peak == DROPPED, 0.0)


class _KeptDots(torch.autograd.Function):
    """dots[n, j] = rows[n] · vectors[columns[n, j]]; a sampled product forward, bags backward."""

    @staticmethod
    def forward(ctx: Any, rows_NX: Tensor, vectors_MX: Tensor, columns_Nj: Tensor) -> Tensor:
        ctx.save_for_backward(rows_NX, vectors_MX, columns_Nj)
        # Torch refuses a pattern with more entries than cells, so a tiny batch goes in pieces; the
        # kernel stays the same, and so does every bit: repeated tokens must tie exactly.
        pieces = [
            _sampled_products(rows_NX, vectors_MX, columns)
            for columns in torch.split(columns_Nj, len(vectors_MX), dim=1)
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_Nj: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows_NX, vectors_MX, columns_Nj = ctx.saved_tensors
        # A side that is frozen costs nothing.
        of_rows = of_vectors = None
        if ctx.needs_input_grad[0]:
            # A bag a row sums as it reads: an (N, j, X) gather is never held.
            of_rows = embedding_bag(
                columns_Nj, vectors_MX, mode="sum", per_sample_weights=grad_Nj.contiguous()
            )
        if ctx.needs_input_grad[1]:
            of_vectors = _sums_by_column(columns_Nj, grad_Nj, rows_NX, len(vectors_MX))
        return of_rows, of_vectors, None


def _sampled_products(rows_NX: Tensor, vectors_MX: Tensor, columns_Nj: Tensor) -> Tensor:
    """rows[n] · vectors[columns[n, j]] for every n and j, as one product sampled by a pattern."""
    rows, entries = columns_Nj.shape
    starts = torch.arange(rows + 1, device=columns_Nj.device, dtype=columns_Nj.dtype) * entries
    # Torch warns that its CSR layout is in beta.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support")
        pattern = torch.sparse_csr_tensor(
            starts,
            columns_Nj.reshape(-1),
            rows_NX.new_zeros(rows * entries),
            size=(rows, len(vectors_MX)),
            # Columns of a row repeat and do not rise; the kernel takes them as they come.
            check_invariants=False,
        )
    dots = torch.sparse.sampled_addmm(pattern, rows_NX, vectors_MX.t(), beta=0.0)
    products: Tensor = dots.values().view(rows, entries)
    return products


def _sums_by_column(columns_Nj: Tensor, weights_Nj: Tensor, rows_NX: Tensor, m: int) -> Tensor:
    """For each column of m, the weighted sum of the rows that hold it, (m, X).

    Entries sorted by column make each sum one bag; adding rows at random places is 15 times
    slower, and a transposed sparse product 2 to 3 times (measured, 740,000 entries).
    """
    column_E, order_E = columns_Nj.reshape(-1).sort(stable=True)
    ends_M = torch.bincount(column_E, minlength=m).cumsum(0)
    return embedding_bag(
        order_E.div(columns_Nj.shape[1], rounding_mode="floor"),
        rows_NX,
        # Bags are given by their starts; a column that no row holds is an empty bag, 0.
        offsets=pad(ends_M, (1, 0))[:-1],
        mode="sum",
        per_sample_weights=weights_Nj.reshape(-1)[order_E],
    )
