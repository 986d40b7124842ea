"""Row-wise optimizers: how the rows of a few labels move, and what is remembered of each row.

Pure arithmetic on tables in place; only the rows named are read or written, so a step costs what
it touches and not what there is. Knows nothing of ranks, files or models.

Shapes: L rows of a table, U rows touched, n a field's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class RowOptimizer(Protocol):
    """Updates touched rows."""

    @property
    def name(self) -> str:
        """As in the settings; a checkpoint of another one is refused."""

    def widths(self, width: int) -> dict[str, int]:
        """Numbers remembered per row of a field of some width, by name."""

    def update(
        self, rows: Tensor, state: Mapping[str, Tensor], ids_U: Tensor, gradient: Tensor,
        rate: float, step: int,
    ) -> None:  # fmt: skip
        """Move rows in place.

        Args:
            rows: (L, n). state: name → (L, width) as `widths` says, all 0 before the first step.
            ids_U: (U,) int64, distinct. gradient: (U, n), overwritten.
            rate: learning rate. step: steps of the table with this one, from 1.
        """


@dataclass(frozen=True)
class RowAdagrad:
    """Adagrad with one number a row: v ← v + mean(g²), w ← w - η·g / (√v + ε).

    After Duchi et al. (JMLR 2011), by rows as FBGEMM has it ("exact row-wise Adagrad").
    """

    eps: float = 1e-8
    name: str = "adagrad"

    def widths(self, width: int) -> dict[str, int]:
        """One sum of mean squares a row."""
        return {"sum": 1}

    def update(
        self, rows: Tensor, state: Mapping[str, Tensor], ids_U: Tensor, gradient: Tensor,
        rate: float, step: int,
    ) -> None:  # fmt: skip
        """As `RowOptimizer`; `step` is not needed."""
        sums = state["sum"]
        # mean(g²) by the norm, which makes no array of squares.
        norm_U1 = torch.linalg.vector_norm(gradient, dim=1, keepdim=True)
        total_U1 = sums[ids_U].add_(norm_U1.square_().div_(gradient.shape[1]))
        sums[ids_U] = total_U1
        rows.index_add_(0, ids_U, gradient.div_(total_U1.sqrt_().add_(self.eps)), alpha=-rate)


@dataclass(frozen=True)
class LazyAdam:
    """Adam whose moments move only where a row is touched, as `torch.optim.SparseAdam`.

    Bias is corrected by the steps of the whole table: a row touched late starts with full moments
    of 0, as in SparseAdam.
    """

    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    name: str = "lazy_adam"

    def widths(self, width: int) -> dict[str, int]:
        """Two moments a number: three times the memory of the rows in all."""
        return {"mean": width, "square": width}

    def update(
        self, rows: Tensor, state: Mapping[str, Tensor], ids_U: Tensor, gradient: Tensor,
        rate: float, step: int,
    ) -> None:  # fmt: skip
        """As `RowOptimizer`."""
        beta1, beta2 = self.betas
        mean = torch.lerp(gradient, state["mean"][ids_U], beta1)
        square = torch.lerp(gradient.square(), state["square"][ids_U], beta2)
        state["mean"][ids_U], state["square"][ids_U] = mean, square
        scale = square.div_(1 - beta2**step).sqrt_().add_(self.eps)
        rows.index_add_(0, ids_U, mean.div_(scale), alpha=-rate / (1 - beta1**step))
