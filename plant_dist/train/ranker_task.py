"""What the two tasks that pretrain a ranker share: one group of parameters, judged by nDCG.

`rank_task.py` (lexical) and `contextual_task.py` build on it. Knows neither kind of ranker, nor
what a list or a batch is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from torch import nn

from plant_dist.config.schema import RankConfig
from plant_dist.mig.graded import Ints
from plant_dist.mig.heldout import HeldOutScores
from plant_dist.runtime.context import RunContext
from plant_dist.train.optim import ParameterGroup

# The two rankers score unlike things: tokens of the vocabulary, or positions of documents.
Score = TypeVar("Score")


class RankerTask(ABC, Generic[Score]):
    """The common half of a ranker's `train.loop.Task`.

    Args:
        ranker: what is trained, whole.
        config: rates, cut-offs.
        context: the place of this process.
    """

    name = "ranker"

    held_out: Ints
    """Labels, ascending, with tokens to validate on, over all ranks; the subclass finds them."""

    def __init__(self, ranker: nn.Module, config: RankConfig, context: RunContext) -> None:
        self.model = ranker
        self._config, self._context = config, context

    @property
    def metric_names(self) -> Sequence[str]:
        """nDCG at every cut-off asked for; nothing where no label has anything to rank."""
        return [f"ndcg@{k}" for k in self._config.ndcg_at] if len(self.held_out) else []

    @property
    def best_metric(self) -> str:
        """The widest cut-off's nDCG, which sees most of a list."""
        return f"ndcg@{max(self._config.ndcg_at)}"

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return all parameters, of tokens and of labels, as one group."""
        config, parameters = self._config, list(self.model.parameters())
        return [ParameterGroup(self.name, parameters, config.learning_rate, config.weight_decay)]

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return mean nDCG@k over labels with held-out tokens. All ranks call."""
        scores = self.measure(self.score_with(model))
        return {f"ndcg@{k}": float(scores.ndcg[:, i].mean()) for i, k in enumerate(scores.ks)}

    @abstractmethod
    def measure(self, score: Score) -> HeldOutScores:
        """Return nDCG@k of each held-out label under any scoring. All ranks call."""

    @abstractmethod
    def score_with(self, model: nn.Module) -> Score:
        """Return the scoring function of a bare model."""
