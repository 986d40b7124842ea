"""Classifiers of the same labels that speak as one: the mean of their probabilities.

The first paper averages a forward and a backward AWD-LSTM; systems of extreme classification are
often three models, or trees, of one kind. Scores and attends as `PlantForMultiLabelClassification`
does; knows neither folders nor how its members were trained.

B documents, S segments, T tokens, D width, L labels, K labels considered.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from transformers.modeling_outputs import SequenceClassifierOutput

from plant_dist.models.classifier import PlantForMultiLabelClassification


class AveragedClassifier(nn.Module):
    """Several classifiers that read the same segments and score the same labels.

    Args:
        members: their hidden states lie beside one another, in this order; where all have the same
            encoder, weight by weight (one that was frozen), it is run once, for all of them.
    """

    def __init__(self, members: Sequence[PlantForMultiLabelClassification]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._classifiers = list(members)
        self._widths = [one.encoder.width for one in members]
        self.one_encoder = all(_alike(one.encoder, members[0].encoder) for one in members[1:])

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, keep: Tensor, hidden: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Score all labels; arguments and result as of one classifier."""
        return SequenceClassifierOutput(
            logits=self.score(*self.encode(input_ids, attention_mask, keep, hidden))
        )

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        keep: Tensor | None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what each member's encoder gives, side by side (B, S, T, ΣD), ids and mask.

        (B, S, T, D) of one encoder.
        """
        if self.one_encoder:
            return self._classifiers[0].encode(input_ids, attention_mask, keep, hidden)
        parts = [None] * len(self._widths) if hidden is None else self._split(hidden)
        read = [
            one.encode(input_ids, attention_mask, keep, part)
            for one, part in zip(self._classifiers, parts, strict=True)
        ]
        return torch.cat([states for states, _, _ in read], dim=-1), read[0][1], read[0][2]

    def score(self, hidden: Tensor, input_ids: Tensor, keep: Tensor) -> Tensor:
        """Return logits (B, L) of the members' mean probabilities."""
        return mean_logits(
            [
                one.score(part, input_ids, keep)
                for one, part in zip(self._classifiers, self._split(hidden), strict=True)
            ]
        )

    def attention_weights(
        self, hidden: Tensor, input_ids: Tensor, keep: Tensor, label_ids_BK: Tensor
    ) -> dict[str, Tensor]:
        """Return the members' mean attention over tokens, `combined` (B, K, T)."""
        found = [
            one.decoder.attention_weights(part, input_ids, keep, label_ids_BK)["combined"]
            for one, part in zip(self._classifiers, self._split(hidden), strict=True)
        ]
        return {"combined": torch.stack(found).mean(0)}

    @property
    def decoder(self) -> AveragedClassifier:
        """What attends: here no part of its own."""
        return self

    def _split(self, hidden: Tensor) -> list[Tensor]:
        if self.one_encoder:
            return [hidden] * len(self._widths)
        return list(torch.split(hidden, self._widths, dim=-1))


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two encoders have the same weights."""
    here, there = one.state_dict(), other.state_dict()
    return here.keys() == there.keys() and all(
        here[name].shape == there[name].shape and torch.equal(here[name], there[name])
        for name in here
    )


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Return the logits of the mean of probabilities, all of one shape.

    Computed as logarithms: far from 0 a probability is 1 in float32, where logits still differ.
    """
    stacked = torch.stack(list(logits))
    # The number of members divides p and 1 - p alike, and falls out of their ratio.
    return logsigmoid(stacked).logsumexp(0) - logsigmoid(-stacked).logsumexp(0)
