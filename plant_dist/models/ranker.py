"""The token-label ranker: s(t,l) = e_t·f_l + a_t + c_l, what is planted as attention.

Holds the token side (e, a) behind one interface, `TokenScorer`, lexical or contextual, and the
product with the label side; label factors f and biases c live in the label table and are passed in.
Must not know how a ranker is trained or where its scores end. B documents, T tokens, D encoder
width, R ranker width, V vocabulary, K labels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from plant_dist.config.schema import RankConfig
from plant_dist.errors import ConfigError


class TokenScorer(nn.Module, ABC):
    """The token side of the ranker: a factor and a bias for every token of a text.

    Attributes:
        width: R, the width of a factor, and of the label factors that fit it.
    """

    width: int

    @abstractmethod
    def token_factors(self, input_ids: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factors e and biases a of tokens.

        Args:
            input_ids: (...) int64 token ids.
            hidden: (..., D) last hidden states at these tokens, if the scorer reads them.

        Returns:
            (..., R) factors and (...) biases.

        Raises:
            ConfigError: a contextual scorer is given no hidden states.
        """


class LexicalScorer(TokenScorer):
    """Free tables over token ids, whatever the context: e (V, R) and a (V,)."""

    def __init__(self, vocabulary_size: int, width: int) -> None:
        """Start from noise; factors have length 1 on average, so f sets the scale of the scores."""
        super().__init__()
        self.width = width
        self.factors = nn.Parameter(torch.randn(vocabulary_size, width) / width**0.5)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    @torch.no_grad()
    def start_from_embeddings(self, embeddings_VD: Tensor) -> None:
        """Start the factors from input embeddings, projected on their first R principal axes.

        Tokens of like embeddings then start with like scores, which is what carries a label's
        evidence over to tokens that never occurred with it. The mean, which all tokens share and
        which cannot rank them, is removed; one scale for all makes the root mean square length 1.
        A wider table keeps small noise in the columns left over, lest they never move.

        Args:
            embeddings_VD: (V, D) float, of the encoder's input embeddings.

        Raises:
            ConfigError: the embeddings are of another vocabulary.
        """
        if len(embeddings_VD) != len(self.factors):
            raise ConfigError(
                f"rank.init: embeddings of {len(embeddings_VD)} tokens for a vocabulary of "
                f"{len(self.factors)}; use the encoder's own tokenizer or rank.init=random"
            )
        projected = principal_components(embeddings_VD.to(self.factors.dtype), self.width)
        columns = projected.shape[1]
        self.factors.mul_(0.1)
        self.factors[:, :columns] = projected / projected.square().sum(dim=1).mean().sqrt()

    def token_factors(self, input_ids: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        return embedding(input_ids, self.factors), self.bias[input_ids]


class ContextualScorer(TokenScorer):
    """The encoder's last hidden state at each token, e = h/√D, and a bias over token ids (V,)."""

    def __init__(self, hidden_size: int, vocabulary_size: int) -> None:
        super().__init__()
        self.width = hidden_size
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def token_factors(self, input_ids: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale the hidden states.

        Raises:
            ConfigError: there are none.
        """
        if hidden is None:
            raise ConfigError(
                "rank.kind is 'contextual', which scores tokens by the encoder's hidden states, "
                "but none were given; set rank.kind to 'lexical' or run the encoder first"
            )
        # The 1/√D of attention, so that factors can start learned queries.
        return hidden / self.width**0.5, self.bias[input_ids]


def build_scorer(config: RankConfig, vocabulary_size: int, hidden_size: int) -> TokenScorer:
    """The token scorer that `rank.kind` names, started from noise or zero."""
    if config.kind == "contextual":
        return ContextualScorer(hidden_size, vocabulary_size)
    return LexicalScorer(vocabulary_size, config.width)


def principal_components(matrix_VD: Tensor, width: int) -> Tensor:
    """Centred rows in the coordinates of their first principal axes: (V, min(width, D)).

    By the eigenvectors of the D×D covariance: exact, and cheap where V is far above D. Each axis
    points where its largest entry is positive, so that the result is one on every machine.
    """
    centred_VD = matrix_VD - matrix_VD.mean(dim=0)
    # In float64, where close eigenvalues mix their axes less; eigh sorts upwards, hence flip.
    axes_DD = torch.linalg.eigh((centred_VD.T @ centred_VD).double()).eigenvectors.flip(1)
    axes_DR = axes_DD[:, : min(width, matrix_VD.shape[1])].to(matrix_VD.dtype)
    largest_1R = axes_DR.abs().argmax(dim=0, keepdim=True)
    # Signs of eigenvectors are arbitrary and differ between libraries.
    components_VR: Tensor = centred_VD @ (axes_DR * axes_DR.gather(0, largest_1R).sign())
    return components_VR


def token_label_scores(
    factors_TR: Tensor, bias_T: Tensor, label_factors: Tensor, label_bias: Tensor | None = None
) -> Tensor:
    """Scores s(t,l) = e_t·f_l + a_t (+ c_l) of tokens for labels.

    Args:
        factors_TR: (T, R), or (B, T, R) for tokens of documents.
        bias_T: (T,) or (B, T).
        label_factors: (K, R) for the same labels everywhere, or (B, K, R) for each document's own.
        label_bias: (K,) or (B, K); leave it out where only the order inside a label matters.

    Returns:
        (K, T) or (B, K, T), contiguous over the tokens, as attention's softmax reads them.
    """
    scores_BKT = label_factors @ factors_TR.transpose(-1, -2) + bias_T.unsqueeze(-2)
    return scores_BKT if label_bias is None else scores_BKT + label_bias.unsqueeze(-1)


def score_moments(
    factors_TR: Tensor, bias_T: Tensor, label_factors_LR: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over tokens of each label's scores e_t·f_l + a_t.

    Scores of labels differ in level and scale, since only their order inside a label was learnt;
    less the mean and over the deviation they compare.

    Args:
        factors_TR, bias_T: (T, R) and (T,) of the tokens that count, at least one.
        label_factors_LR: (L, R).

    Returns:
        (L,) means and (L,) population deviations, float64; T × L scores are never held.
    """
    tokens_TX = torch.cat([factors_TR, bias_T[:, None]], dim=1).double()
    labels_LX = torch.cat(
        [label_factors_LR, label_factors_LR.new_ones(len(label_factors_LR), 1)], 1
    )
    labels_LX = labels_LX.double()
    mean_X = tokens_TX.mean(dim=0)
    centred_TX = tokens_TX - mean_X
    # A score is linear in the token, so its variance is a quadratic form of theirs.
    covariance_XX = centred_TX.T @ centred_TX / len(tokens_TX)
    variance_L = ((labels_LX @ covariance_XX) * labels_LX).sum(dim=1)
    return labels_LX @ mean_X, variance_L.clamp_min(0.0).sqrt()


def list_scores(factors_NMR: Tensor, bias_NM: Tensor, label_factors_NR: Tensor) -> Tensor:
    """Scores (N, M) of lists of tokens, the n-th list scored for the n-th label alone."""
    # A product with one column each: no transposed copy of the gathered factors.
    scores_NM: Tensor = (factors_NMR @ label_factors_NR.unsqueeze(2)).squeeze(2)
    return scores_NM + bias_NM
