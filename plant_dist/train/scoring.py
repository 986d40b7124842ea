"""Which labels are scored for a document: all, those an index retrieves, or the best of all.

One interface for validation, `evaluate`, `predict` and `explain`. Must not know how an index was
made, nor what is done with the scores.

B documents, K labels scored, L labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from plant_dist.models.averaged import AveragedClassifier
from plant_dist.models.classifier import PlantForMultiLabelClassification
from plant_dist.shortlist.index import Float32, Int64

Search = Callable[[Float32, int], tuple[Float32, Int64]]


class Scored(NamedTuple):
    """Scores of some documents.

    Attributes:
        logits: (B, L), or (B, K) with label ids; -inf where there is no label.
        label_ids: (B, K) int64, -1 where there is no label; None where all labels are scored.
    """

    logits: Tensor
    label_ids: Tensor | None


class Scoring(Protocol):
    """Scores documents from what `encode` gave: hidden states, ids, keep mask."""

    def __call__(self, hidden: Tensor, input_ids: Tensor, keep: Tensor) -> Scored:
        """Return logits of the labels considered."""


class AllLabels:
    """Scores every label."""

    def __init__(self, model: PlantForMultiLabelClassification | AveragedClassifier) -> None:
        self._model = model

    def __call__(self, hidden: Tensor, input_ids: Tensor, keep: Tensor) -> Scored:
        """Return logits (B, L)."""
        return Scored(self._model.score(hidden, input_ids, keep), None)


class BestOfAll:
    """Scores every label block by block and keeps the best K: memory does not grow with L."""

    def __init__(self, model: PlantForMultiLabelClassification, k: int) -> None:
        self._model, self._k = model, k

    def __call__(self, hidden: Tensor, input_ids: Tensor, keep: Tensor) -> Scored:
        """Return the best logits (B, K) and their labels."""
        return Scored(*self._model.score_best(hidden, input_ids, keep, self._k))


class Retrieved:
    """Scores the labels that an index retrieves.

    Args:
        model: one with a retriever.
        search: (vectors (B, X), K) -> inner products and label ids (B, K).
        vectors: returns which vectors the index holds now; it changes when one is exchanged.
        k: labels retrieved.
    """

    def __init__(
        self,
        model: PlantForMultiLabelClassification,
        search: Search,
        vectors: Callable[[], str],
        k: int,
    ) -> None:
        self._model, self._search, self._vectors, self._k = model, search, vectors, k

    def __call__(self, hidden: Tensor, input_ids: Tensor, keep: Tensor) -> Scored:
        """Return logits (B, K) of the retrieved labels, and the labels."""
        retriever = self._model.retriever
        assert retriever is not None  # or there were no index
        vectors = retriever.document_vectors(self._vectors(), hidden, input_ids, keep)
        _, found = self._search(vectors.float().cpu().numpy(), self._k)
        label_ids = torch.from_numpy(found).to(hidden.device)
        missing = label_ids < 0
        # Any label stands in where the index found too few; what it scores is dropped.
        return Scored(
            self._model.score(hidden, input_ids, keep, label_ids.clamp_min(0), missing), label_ids
        )
