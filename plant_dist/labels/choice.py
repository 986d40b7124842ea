"""Which engine keeps the rows, which optimizer moves them, and what that takes: said before made.

Knows sizes and settings; the caller says how much memory there is and how many ranks train.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from plant_dist.config.labels import LabelsConfig
from plant_dist.labels.table import FROZEN_FIELDS
from plant_dist.labels.updates import LazyAdam, RowAdagrad, RowOptimizer

FLOAT = 4  # bytes


@dataclass(frozen=True)
class RowsPlan:
    """How rows are kept.

    Attributes:
        engine: replicated or sharded.
        optimizer: adamw, adagrad or lazy_adam.
        rows_bytes, state_bytes: of the rows and of what moves them, on the fullest rank.
        gradient_bytes: of the gradients of all rows, where there are such; else 0.
        count, numbers: labels, and numbers per label.
    """

    engine: str
    optimizer: str
    rows_bytes: int
    state_bytes: int
    gradient_bytes: int
    count: int
    numbers: int

    @property
    def dense(self) -> bool:
        """Whether every row moves at every step, in the loop's own optimizer."""
        return self.optimizer == "adamw"

    def __str__(self) -> str:
        moving = self.state_bytes + self.gradient_bytes
        return (
            f"{self.engine} ({self.optimizer}), {self.count:,} rows of {self.numbers} numbers: "
            f"{_gib(self.rows_bytes)} of rows and {_gib(moving)} of optimizer a process"
        )

    @property
    def total_bytes(self) -> int:
        """All of it on the fullest rank."""
        return self.rows_bytes + self.state_bytes + self.gradient_bytes


def plan_rows(
    config: LabelsConfig, count: int, widths: Mapping[str, int], world: int,
    free_bytes: float, shortlisted: bool = False, rowwise: bool = True,
) -> RowsPlan:  # fmt: skip
    """Choose engine and optimizer.

    Args:
        config: what the settings ask for.
        world: ranks that train.
        free_bytes: memory of one process, half of which whole rows may take; `memory_gb` goes
            before it.
        shortlisted: a training step considers a shortlist of labels, not all.
        rowwise: adamw keeps one second moment a row, as `train.optim.rowwise` says.
    """
    whole = _plan("replicated", config, count, widths, 1, shortlisted, rowwise)
    limit = config.memory_gb * 1e9 if config.memory_gb is not None else free_bytes / 2
    # One process gains nothing from shards, and adamw needs whole rows.
    fits = world == 1 or whole.total_bytes <= limit or config.optimizer == "adamw"
    engine = config.engine if config.engine != "auto" else "replicated" if fits else "sharded"
    ranks = world if engine == "sharded" else 1
    return _plan(engine, config, count, widths, ranks, shortlisted, rowwise)


def _plan(
    engine: str, config: LabelsConfig, count: int, widths: Mapping[str, int], ranks: int,
    shortlisted: bool, rowwise: bool,
) -> RowsPlan:  # fmt: skip
    optimizer = config.optimizer_on(engine, shortlisted)
    numbers, labels = sum(widths.values()), -(-count // ranks)
    learnt = {name: width for name, width in widths.items() if name not in FROZEN_FIELDS}
    gradients = 0
    if optimizer == "adamw":
        gradients = sum(learnt.values())
        state = gradients + (len(learnt) if rowwise else gradients)
    else:
        made = row_optimizer(optimizer, config, (0.9, 0.999))
        state = sum(sum(made.widths(width).values()) for width in learnt.values())
    row = FLOAT * labels
    return RowsPlan(engine, optimizer, row * numbers, row * state, row * gradients, count, numbers)


def row_optimizer(name: str, config: LabelsConfig, betas: tuple[float, float]) -> RowOptimizer:
    """Return a row-wise optimizer by its name."""
    if name == "adagrad":
        return RowAdagrad(eps=config.eps)
    return LazyAdam(betas=betas, eps=config.eps)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"
