"""Classification losses over many labels: binary cross-entropy, focal, asymmetric, softmax.

Gold labels stay sparse: every label is charged as a negative, then the few positives are
corrected, so no documents × labels target is ever made. Knows nothing of models or of how the
labels considered were chosen.

Shapes: B documents, K labels considered, L labels, G gold labels of the batch, I ignored pairs.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, pad, softplus

from plant_dist.config.schema import LossConfig
from plant_dist.errors import DataError


def multilabel_loss(
    logits_BK: Tensor,
    label_offsets: Tensor,
    label_ids: Tensor,
    weights_B: Tensor,
    config: LossConfig,
    positive_weights: Tensor | None = None,
    ignored: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Σ over documents of weight · mean over labels of the loss.

    Args:
        logits_BK: (B, K) float; column j is label j, or the label that a shortlist puts there.
        label_offsets: (B+1,) int64, where each document's gold labels start.
        label_ids: (G,) int64, gold columns; no column twice in a document. Columns of a
            shortlist come from `shortlist_columns`.
        weights_B: (B,) float, 0 for filler documents; the caller divides by their global sum.
        config: kind of loss and its exponents.
        positive_weights: (G,) float, weight of each gold label's term: `label_weights` at the
            labels' ids. None weighs all 1.
        ignored: offsets (B+1,) and columns (I,) int64 of pairs that are charged neither as gold
            nor as negatives (filter files).
    Returns: scalar float32 (or wider, as the logits).
    """
    losses_B = document_losses(
        logits_BK, label_offsets, label_ids, config, positive_weights, ignored
    )
    return (losses_B * weights_B).sum()


def document_losses(
    logits_BK: Tensor,
    label_offsets: Tensor,
    label_ids: Tensor,
    config: LossConfig,
    positive_weights: Tensor | None = None,
    ignored: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean loss over the labels of each document, (B,); arguments as `multilabel_loss`."""
    # Sums over thousands of labels lose small terms in half precision.
    logits_BK = logits_BK.to(torch.promote_types(logits_BK.dtype, torch.float32))
    # With its size given, repeat_interleave does not wait for the device.
    document_G = torch.repeat_interleave(label_offsets.diff(), output_size=len(label_ids))
    # X: what is no negative, the gold pairs and then the ignored ones.
    document_X, label_X = document_G, label_ids
    if ignored is not None:
        document_I, label_I = _pairs(*ignored)
        counted_G = ~_among(document_G, label_ids, document_I, label_I, logits_BK.shape[1])
        document_G, label_ids = document_G[counted_G], label_ids[counted_G]
        if positive_weights is not None:
            positive_weights = positive_weights[counted_G]
        document_X = torch.cat([document_G, document_I])
        label_X = torch.cat([label_ids, label_I])
    gold_G = logits_BK[document_G, label_ids]
    if config.kind == "softmax":
        # Negatives are charged as rivals of the gold labels, not one by one.
        charged_B = logits_BK.new_zeros(len(logits_BK))
        positive_G = softplus(rivals(logits_BK, document_X, label_X)[document_G] - gold_G)
        spared_X = logits_BK.new_zeros(len(label_X))
    else:
        charged_B = negative_terms(logits_BK, config).sum(1)
        positive_G = positive_terms(gold_G, config)
        # These were charged as negatives with all the others.
        spared_X = negative_terms(logits_BK[document_X, label_X], config)
    # The positive term alone: a weight must not touch the negative charge taken back.
    if positive_weights is not None:
        positive_G = positive_G * positive_weights
    owed_X = pad(positive_G, (0, len(spared_X) - len(positive_G))) - spared_X
    return charged_B.index_add(0, document_X, owed_X) / logits_BK.shape[1]


def _pairs(offsets: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    return torch.repeat_interleave(offsets.diff(), output_size=len(ids)), ids


def _among(
    document_G: Tensor, label_G: Tensor, document_I: Tensor, label_I: Tensor, width: int
) -> Tensor:
    """(G,) bool: the pair is one of the others."""
    return torch.isin(document_G * width + label_G, document_I * width + label_I)


def rivals(logits_BK: Tensor, document_X: Tensor, label_X: Tensor) -> Tensor:
    """ln Σ e^z over the labels of each document that are not given, (B,).

    softplus(rivals − z_g) = −ln(e^{z_g} / (e^{z_g} + Σ rivals)): each gold label is told from the
    negatives and not from the other gold ones (the decoupled softmax of extreme classification).
    """
    # Finite, for a document whose labels are all gold: -inf less -inf has no slope.
    nothing = torch.finfo(logits_BK.dtype).min / 2
    masked_BK = logits_BK.index_put((document_X, label_X), logits_BK.new_tensor(nothing))
    return masked_BK.logsumexp(1)


def positive_terms(logits: Tensor, config: LossConfig) -> Tensor:
    """Loss of gold labels, elementwise; p = σ(z).

    bce −ln p; focal −(1−p)^γ ln p (Lin et al. 2017, without α); asl −(1−p)^γ₊ ln p (Ridnik et
    al. 2021).
    """
    gammas = {"bce": 0.0, "focal": config.focal_gamma, "asl": config.asl_gamma_positive}
    return _focus(-logits, gammas[config.kind]) * softplus(-logits)


def negative_terms(logits: Tensor, config: LossConfig) -> Tensor:
    """Loss of all other labels, elementwise; p = σ(z).

    bce −ln(1−p); focal −p^γ ln(1−p); asl −q^γ₋ ln(1−q) with the shifted q = max(p − clip, 0).
    """
    if config.kind != "asl":
        gamma = config.focal_gamma if config.kind == "focal" else 0.0
        return _focus(logits, gamma) * softplus(logits)
    if config.asl_clip == 0.0:
        return _focus(logits, config.asl_gamma_negative) * softplus(logits)
    shifted = torch.sigmoid(logits) - config.asl_clip
    # A power below 1 has no slope at 0, so negatives under the shift leave the power's domain.
    charged = shifted > 0
    shifted = shifted.masked_fill(~charged, 0.5)
    terms = shifted**config.asl_gamma_negative * -torch.log1p(-shifted)
    return terms.masked_fill(~charged, 0.0)


def shortlist_columns(
    shortlist_BK: Tensor, label_offsets: Tensor, label_ids: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gold labels as columns of a shortlist; those not on it are left out.

    Args:
        shortlist_BK: (B, K) int64, distinct label ids of each document.
        label_offsets, label_ids: gold labels as in a batch, (B+1,) and (G,).
    Returns: offsets (B+1,) and columns (≤ G,) int64 for `multilabel_loss`, and (G,) bool, which
        gold labels were found.
    """
    documents = shortlist_BK.shape[0]
    document_G = torch.repeat_interleave(label_offsets.diff(), output_size=len(label_ids))
    sorted_BK, order_BK = shortlist_BK.sort(dim=1)
    # One search for all documents: ids of document b are lifted above those of b - 1.
    lift = _above(shortlist_BK, label_ids)
    rows = torch.arange(documents, device=label_ids.device)
    keys = (sorted_BK + rows[:, None] * lift).reshape(-1)
    place_G = torch.searchsorted(keys, label_ids + document_G * lift)
    # An id above every key is found at the end; clamped, it compares as unequal.
    place_G = place_G.clamp_max(len(keys) - 1)
    found_G = keys[place_G] == label_ids + document_G * lift
    counts_B = torch.bincount(document_G[found_G], minlength=documents)
    offsets = pad(counts_B.cumsum(0), (1, 0))
    return offsets, order_BK.reshape(-1)[place_G[found_G]], found_G


def label_weights(
    config: LossConfig,
    train_frequency: Tensor,
    documents: int,
    propensity: tuple[float, float] = (0.55, 1.5),
) -> Tensor | None:
    """Weights of the positives per label, or None where the config asks for none.

    Args:
        train_frequency: (L,) training documents of each label.
        documents: training documents N.
        propensity: constants A and B of the propensity model.
    Returns: (L,) float32.
    """
    if config.label_weights == "none":
        return None
    if config.label_weights == "propensity":
        return inverse_propensity(train_frequency, documents, *propensity).float()
    return inverse_effective_number(train_frequency, documents).float()


def inverse_propensity(
    train_frequency: Tensor, documents: int, a: float = 0.55, b: float = 1.5
) -> Tensor:
    """1 + (ln N − 1)(B + 1)^A · e^(−A ln(n_l + B)), float64, ≥ 1 (Jain, Prabhu, Varma 2016).

    Raises:
        DataError: fewer than three training documents, where ln N − 1 is not positive.
    """
    if documents < 3:
        raise DataError(
            f"propensity weights need at least 3 training documents; found {documents}; "
            "set train.loss.label_weights to none"
        )
    scale = (math.log(documents) - 1.0) * (b + 1.0) ** a
    inverse: Tensor = 1.0 + scale * torch.exp(-a * torch.log(train_frequency.double() + b))
    return inverse


def inverse_effective_number(train_frequency: Tensor, documents: int) -> Tensor:
    """(1 − β)/(1 − β^n_l) with β = 1 − 1/N, scaled to mean 1, float64 (Cui et al. 2019).

    Labels without a training document weigh as those with one.
    """
    if documents < 2:
        return torch.ones(len(train_frequency), dtype=torch.float64)
    # 1 - β^n by logarithm and expm1: for large N the difference would cancel.
    decay = math.log1p(-1.0 / documents)
    weights: Tensor = -1.0 / torch.expm1(decay * train_frequency.double().clamp_min(1.0))
    return weights / weights.mean()


def _focus(logits: Tensor, gamma: float) -> Tensor | float:
    """σ(z)^γ, by its logarithm, so that its slope is finite wherever σ underflows."""
    # Plain cross-entropy is spared a B×K array of ones.
    return 1.0 if gamma == 0.0 else torch.exp(gamma * logsigmoid(logits))


def _above(shortlist_BK: Tensor, label_ids: Tensor) -> Tensor:
    """A number above every label id, on the device, without waiting for it."""
    highest = shortlist_BK.amax() + 1
    return torch.maximum(highest, label_ids.amax() + 1) if label_ids.numel() else highest
