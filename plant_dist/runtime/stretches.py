"""What lies on a rank under ZeRO: stretches of parameters and of what the optimizer remembers.

Weights that learn are written from the stretches that the optimizer moves, and read back to them
and to the weights that the model computes with. Whole tensors (buffers, rows, what is frozen) are
written as everywhere. Knows how DeepSpeed lays out its stretches, and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from plant_dist.errors import ArtifactError
from plant_dist.runtime.held import (
    MODEL,
    OPTIMIZER,
    Held,
    fill_weights,
    keys_by_name,
    own_tensors,
    shared_out,
)
from plant_dist.runtime.pieces import Piece, Pieces


class Shared(NamedTuple):
    """DeepSpeed's optimizer, the one inside it that moves stretches, and the stage."""

    zero: Any
    inner: Optimizer
    stage: int


class Stretch(NamedTuple):
    """Where a rank's part of a parameter lies.

    Attributes:
        start, size: numbers of the flattened parameter.
        flat: what the optimizer moves: stretches of a whole group, one after another.
        offset: where this one begins there.
    """

    start: int
    size: int
    flat: Tensor
    offset: int

    def of(self, flat: Tensor) -> Tensor:
        """Return this stretch of something laid out like `flat`."""
        return flat.narrow(0, self.offset, self.size)


class HeldStretches(Held):
    """As `Held`, for a model that DeepSpeed has shared out; `shared` says how."""

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, averages: Mapping[str, Tensor],
        rank: int, world: int, shared: Shared,
    ) -> None:  # fmt: skip
        super().__init__(model, optimizer, averages, rank, world)
        self.shared = shared
        self._learn = {id(one) for group in _members(shared) for one in group}

    def _is_shared(self, parameter: Tensor) -> bool:
        # Under stage 3, what is frozen is cut up too.
        return id(parameter) in self._learn or hasattr(parameter, "ds_id")

    def _parameters(self) -> Iterator[tuple[str, Any]]:
        """Yield names and parameters that a checkpoint holds and DeepSpeed has cut up."""
        for name, one in own_tensors(self.model):
            if isinstance(one, nn.Parameter) and self._is_shared(one):
                yield name, one

    def _stretch(self, parameter: Any) -> Stretch | None:
        """Return this rank's part of a parameter that learns; None where it has none."""
        zero = self.shared.zero
        if self.shared.stage == 3:
            group, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            start = size * zero._get_param_partition_rank(parameter)
            # The last ranks' parts are filled up beyond the parameter's end.
            size = min(size, parameter.ds_numel - start)
            flat = zero.fp32_partitioned_groups_flat[group]
            return Stretch(start, size, flat, offset) if size > 0 else None
        found = parameter._hp_mapping
        if found is None:
            return None
        flat = zero.single_partition_of_fp32_groups[found.param_group_index]
        place = found.hp_fragment_address
        return Stretch(found.lp_fragment_address.start, place.numel, flat, place.start)

    def pieces(self) -> Iterator[Piece]:
        """Yield what this rank writes; all ranks together yield every number once."""
        parameters = dict(self._parameters())
        yield from shared_out(self.tensors(skip=parameters.__contains__), self.rank, self.world)
        for name, one in parameters.items():
            shape = tuple(getattr(one, "ds_shape", one.shape))
            if id(one) not in self._learn:
                start, values = _frozen_part(one)
                if len(values):
                    yield Piece(MODEL, name, shape, start, values)
                continue
            stretch = self._stretch(one)
            if stretch is None:
                continue
            yield Piece(MODEL, name, shape, stretch.start, stretch.of(stretch.flat))
            for key, value in self.shared.inner.state.get(stretch.flat, {}).items():
                if value.dim() == 0:
                    if stretch.start == 0:
                        # One count for a group; each of its names has its own.
                        yield Piece(OPTIMIZER, f"{key}/{name}", (), 0, value.clone())
                else:
                    yield Piece(OPTIMIZER, f"{key}/{name}", shape, stretch.start,
                                stretch.of(value))  # fmt: skip

    def fill_model(self, folder: Path) -> None:
        """Read the weights back, and hand them to the optimizer's stretches.

        Raises:
            ArtifactError: they are of another model.
        """
        parameters: dict[str, Any] = dict(self._parameters())
        if self.shared.stage == 3:
            # What is gathered now would be written over what is read.
            self.shared.zero.parameter_offload.partition_all_parameters()

        def fill(name: str, tensor: Tensor, saved: Pieces) -> bool:
            parameter = parameters.get(name)
            if parameter is None or not hasattr(parameter, "ds_tensor"):
                return False
            if tuple(parameter.ds_shape) != saved.shapes[name]:
                raise ArtifactError(
                    f"{folder} holds another model than this run's ({name} is "
                    f"{list(saved.shapes[name])} there and {list(parameter.ds_shape)} here); add "
                    "--force to train from the start"
                )
            start, values = _frozen_part(parameter)
            if len(values):
                values.copy_(saved.stretch(name, start, start + len(values)))
            return True

        fill_weights(self.model, folder, fill)
        self.shared.zero.refresh_fp32_params()

    def fill_optimizer(self, saved: Pieces) -> None:
        """Read back what the optimizer remembers, to stretches and to what is whole.

        Raises:
            ArtifactError: it is of another optimizer.
        """
        keys = keys_by_name(saved)
        parameters = dict(self._parameters())
        # Not what is cut up, whose parameters the loop's optimizer never moves.
        self.fill_whole(saved, skip=parameters.__contains__)
        fused = bool(self.shared.inner.defaults.get("fused"))
        steps: dict[int, float] = {}
        for name, one in parameters.items():
            stretch = self._stretch(one) if id(one) in self._learn else None
            if stretch is None:
                continue
            state = self.shared.inner.state[stretch.flat]
            for key in keys.get(name, ()):
                # Of whole tensors a stretch, of scalars themselves.
                if not saved.shapes[f"{key}/{name}"]:
                    scalar = saved.read(f"{key}/{name}")
                    state[key] = scalar.to(stretch.flat.device) if fused else scalar
                    continue
                if key not in state:
                    state[key] = torch.zeros_like(stretch.flat)
                found = saved.stretch(f"{key}/{name}", stretch.start, stretch.start + stretch.size)
                stretch.of(state[key]).copy_(found)
            # A stretch of a group has one count of steps.
            made = float(state["step"]) if keys.get(name) else 0.0
            if steps.setdefault(id(stretch.flat), made) != made:
                raise ArtifactError(
                    f"{saved.folder}: {name} has made {made:.0f} steps, others of its group "
                    f"{steps[id(stretch.flat)]:.0f}, which zero{self.shared.stage} cannot keep "
                    "apart; set runtime.engine=ddp"
                )


def _members(shared: Shared) -> list[list[nn.Parameter]]:
    zero = shared.zero
    found: list[list[nn.Parameter]] = zero.fp16_groups if shared.stage == 3 else zero.bit16_groups
    return found


def _frozen_part(parameter: Any) -> tuple[int, Tensor]:
    """Return the start and the numbers of the part of a parameter that stage 3 computes with."""
    part = parameter.ds_tensor
    start = part.ds_numel * dist.get_rank(parameter.ds_process_group)
    return start, part.data.view(-1)[: max(0, min(part.ds_numel, parameter.ds_numel - start))]
