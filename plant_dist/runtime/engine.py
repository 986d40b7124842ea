"""The engine that a step runs on: Accelerate, set up from our config and our launch.

It wraps a model for the number of processes and the precision, and offers the verbs of a step:
accumulate, backward, update. It is the only place that knows Accelerate's Accelerator;
`zero.ZeroEngine` (DeepSpeed) takes its place where `runtime.engine` says so. Two things are kept
from Accelerate on purpose: the schedule, which it would advance once per process, and the loader,
since our sampler slices batches by rank itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
)
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from plant_dist.runtime.apart import names_kept_apart
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.held import Held

ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Update(NamedTuple):
    """How an optimizer step went.

    Attributes:
        norms: (groups + 1,) float32, on the device: the 2-norm of each group's gradients before
            clipping, then of all.
        applied: False where fp16 overflowed and the weights stayed as they were.
    """

    norms: Tensor
    applied: bool


class Engine:
    """Runs forward, backward and optimizer steps on one process or on many (DDP).

    Args:
        context: the place of this process.
        unused_parameters: a step may leave parameters without a gradient (frozen ones that thaw
            later); costs a walk over the graph each step.
    """

    def __init__(self, context: RunContext, unused_parameters: bool = False) -> None:
        self.context = context
        ddp = DistributedDataParallelKwargs(
            # Our buffers are constants (gains, positions): the same on every rank from the start.
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
            find_unused_parameters=unused_parameters,
        )
        self._accelerator = Accelerator(
            mixed_precision=ACCELERATE_PRECISION[context.precision],
            cpu=context.device.type == "cpu",
            # The loop weighs its batches itself, so that a short last group is exact.
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[ddp],
        )

    @property
    def scaler(self) -> Any | None:
        """The fp16 gradient scaler (`torch.amp.GradScaler`), None in other precisions."""
        return self._accelerator.scaler

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:
        """Move a model to the device and wrap it for its processes. All ranks must call.

        Every parameter that will ever train must require its gradient now. Rank 0's weights are
        sent to the others.
        """
        apart = names_kept_apart(model)
        shared = [name for name, p in model.named_parameters() if p.requires_grad]
        if apart:
            ignore: Any = DistributedDataParallel._set_params_and_buffers_to_ignore_for_model
            # Else every rank would be sent the rows of rank 0, and gradients of all rows.
            ignore(model, list(apart))
        # Nothing may be left to DDP, which refuses such a model: rows on a frozen encoder.
        alone = bool(apart) and apart.issuperset(shared)
        wrapped: nn.Module = self._accelerator.prepare_model(model, evaluation_mode=alone)
        # The optimizer too, so that fp16 scaling can skip its step.
        self._optimizer = self._accelerator.prepare_optimizer(optimizer)
        return wrapped

    def autocast(self) -> AbstractContextManager[None]:
        """Compute the block in the run's precision."""
        precision: AbstractContextManager[None] = self._accelerator.autocast()
        return precision

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Surround forward and backward of one batch; ranks exchange gradients after the last."""
        # Accelerate reads it in `backward` and `step`; its own counting of batches is turned off.
        self._accelerator.sync_gradients = last
        try:
            if last:
                yield
            else:
                with self._accelerator.no_sync(model):
                    yield
        finally:
            self._accelerator.sync_gradients = True

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients, scaled where fp16 needs it."""
        self._accelerator.backward(loss)

    def update(self, groups: Sequence[Sequence[nn.Parameter]], limit: float | None) -> Update:
        """Update the weights, and clear the gradients. All ranks must call.

        Args:
            groups: the parameters of each group, whose norms are told.
            limit: gradients are scaled together so that their norm is at most this.
        """
        norms = self._clip(groups, limit)
        self._optimizer.step()
        # None and not 0: frees memory, and Adam leaves parameters without a gradient alone.
        self._optimizer.zero_grad(set_to_none=True)
        return Update(norms, not self._accelerator.optimizer_step_was_skipped)

    def _clip(self, groups: Sequence[Sequence[nn.Parameter]], limit: float | None) -> Tensor:
        # Norms and limit are of true gradients; fp16 ones still carry the loss scale.
        self._accelerator.unscale_gradients(self._optimizer)
        norms = torch.stack([gradient_norm(group, self.context.device) for group in groups])
        # The norm of the norms is the norm of all: every gradient is read once.
        total = torch.linalg.vector_norm(norms)
        if limit is not None:
            parameters = [parameter for group in groups for parameter in group]
            nn.utils.clip_grads_with_norm_(parameters, limit, total)
        return torch.cat([norms, total[None]])

    def held(self, model: nn.Module, optimizer: Optimizer, averages: Mapping[str, Tensor]) -> Held:
        """Return what of a prepared model and its optimizer lies on this rank."""
        return Held(model, optimizer, averages, self.context.rank, self.context.world)

    def whole(self) -> AbstractContextManager[None]:
        """Have all weights on every rank inside the block, to read. All ranks must call."""
        return nullcontext()

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the module inside the wrappers; it still computes in the run's precision."""
        bare: nn.Module = self._accelerator.unwrap_model(model)
        return bare

    def release(self, model: nn.Module) -> nn.Module:
        """Return the module as it came: plain forward, ready for another engine or for saving."""
        bare: nn.Module = self._accelerator.unwrap_model(model)
        if "_original_forward" in bare.__dict__:
            # Accelerate's precision wrapper is an attribute that hides the class's own forward.
            del bare._original_forward, bare.forward
        # The mark would make the next engine leave the model unwrapped.
        bare.__dict__.pop("_is_accelerate_prepared", None)
        self._accelerator.free_memory()
        return bare


def gradient_norm(parameters: Sequence[nn.Parameter], device: torch.device) -> Tensor:
    """Return the () float32 2-norm of parameters' gradients; 0 where none has one."""
    gradients = [one.grad for one in parameters if one.grad is not None]
    if not gradients:
        return torch.zeros((), device=device)
    return nn.utils.get_total_norm(gradients).float()
