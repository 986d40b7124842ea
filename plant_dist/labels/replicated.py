"""The replicated engine: every rank holds all rows, and moves those that any rank has touched.

No package beyond torch is needed. Ranks exchange the ids and gradients of touched rows, so the
traffic of a step does not depend on the number of labels; memory does, on every rank.

Shapes: U distinct labels of a batch, W ranks.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from plant_dist.labels.sparse import SparseRows, Touched
from plant_dist.labels.updates import RowOptimizer
from plant_dist.runtime.apart import Snapshot


class ReplicatedRows(SparseRows):
    """Rows on every rank; arguments as `SparseRows`.

    Args:
        world: ranks that train together.
    """

    def __init__(
        self, count: int, widths: Mapping[str, int], optimizer: RowOptimizer,
        zero: tuple[str, ...] = (), world: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(count, widths, optimizer, zero)
        self.own, self._world = range(count), world
        # Plain tensors: the state is no part of the model, and is saved beside the rows.
        self._state: dict[str, dict[str, Tensor]] = {}
        for name, width in self.widths.items():
            self.fields[name] = nn.Parameter(torch.empty(count, width))
        self.reset()

    def snapshot(self, resume: bool = True) -> Snapshot | None:
        """Return all rows, on the first rank, since every rank has the same."""
        if self._world == 1 or dist.get_rank() == 0:
            return super().snapshot(resume)
        return None

    def _look_up(self, ids_U: Tensor) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        found = {name: rows.detach().index_select(0, ids_U) for name, rows in self.fields.items()}
        return found, {}

    def state_of(self, name: str) -> dict[str, Tensor]:
        """Return the optimizer's state, made when it is first asked for, on the rows' device."""
        if name not in self._state:
            rows = self.fields[name]
            self._state[name] = {
                part: torch.zeros(self.count, width, device=rows.device)
                for part, width in self.optimizer.widths(self.widths[name]).items()
            }
        return self._state[name]

    def _send(self, touched: Touched, gradients: Mapping[str, Tensor]) -> None:
        ids_U = touched.ids_U
        if self._world > 1:
            ids_U, gradients = self._from_all_ranks(ids_U, gradients)
        for name, gradient in gradients.items():
            self.optimizer.update(
                self.fields[name].data, self.state_of(name), ids_U, gradient,
                self._rates.get(name, 0.0), self.steps,
            )  # fmt: skip

    def _from_all_ranks(
        self, ids_U: Tensor, gradients: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the ids that any rank touched, and the mean over ranks of their gradients."""
        sizes = [torch.zeros_like(ids_U[:1]) for _ in range(self._world)]
        dist.all_gather(sizes, torch.full_like(ids_U[:1], len(ids_U)))
        counts = [int(size) for size in sizes]
        every, places = torch.unique(torch.cat(_gathered(ids_U, counts)), return_inverse=True)
        means: dict[str, Tensor] = {}
        for name, gradient in gradients.items():
            # A field at a time, and summed in the order of ranks: equal bits on every rank.
            total = gradient.new_zeros(len(every), gradient.shape[1])
            parts = places.split(counts)
            for place, part in zip(parts, _gathered(gradient, counts), strict=True):
                total.index_add_(0, place, part)
            means[name] = total.div_(self._world)
        return every, means


def _gathered(mine: Tensor, counts: list[int]) -> list[Tensor]:
    """Return every rank's tensor (count, …), of which `counts` says the lengths."""
    # Collectives want one shape, so shorter ones are filled up and cut again.
    padded = mine.new_zeros(max(counts), *mine.shape[1:])
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(found, padded)
    return [one[:count] for one, count in zip(found, counts, strict=True)]
