"""What a task is to the only training loop: batches, a loss, metrics. Knows no task and no loop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from plant_dist.train.optim import ParameterGroup


class BatchSize(NamedTuple):
    """How much a batch holds.

    Attributes:
        documents: real documents of the global batch, over all ranks (fillers count 0); the
            weight of the batch among those accumulated into one step, the same on every rank.
        tokens: real tokens of this rank's part.
    """

    documents: float
    tokens: int


class Task(Protocol):
    """What is trained. `batches` and `validate` must not draw from the global generators."""

    name: str
    model: nn.Module

    @property
    def metric_names(self) -> Sequence[str]:
        """Names that `validate` reports; empty where there is nothing to validate on."""

    def parameter_groups(self) -> list[ParameterGroup]:
        """Return the parameters that train, each in one group; the others do not require_grad."""

    def idle(self) -> Sequence[nn.Module]:
        """Return the parts of the model that cost a step no products: kept, or only looked up."""

    def batches_per_epoch(self, epoch: int) -> int:
        """Return the number of batches of an epoch, the same on every rank."""

    def batches(self, epoch: int, start: int) -> Iterable[Any]:
        """Yield this rank's batches of an epoch in order, from position `start` on."""

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Return a () loss whose mean over ranks is the mean over the global batch.

        The task moves the batch to the model's device. `model` may be a wrapper: call it, and
        read nothing else from it.
        """

    def size(self, batch: Any) -> BatchSize:
        """Return how much a batch holds."""

    def identify(self, batch: Any) -> list[str]:
        """Return the ids of this rank's documents in a batch."""

    def validate(self, model: nn.Module) -> Mapping[str, float]:
        """Return the metrics of a bare model in evaluation mode. All ranks call."""
