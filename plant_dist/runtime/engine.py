"""The engine that a step runs on: Accelerate, set up from our config and our launch.

It wraps model and optimizer for the number of processes and the precision, and offers the five
verbs of a step: accumulate, backward, clip, step, unwrap. It is the only place that knows
Accelerate's Accelerator; another engine (DeepSpeed) takes its place here. Two things are kept from
Accelerate on purpose: the schedule, which it would advance once per process, and the loader, since
our sampler slices batches by rank itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

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

ACCELERATE_PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


class Engine:
    """Runs forward, backward and optimizer steps on one process or on many.

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

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
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
        if apart and apart.issuperset(shared):
            # Nothing is left to DDP, which refuses such a model: rows on a frozen encoder.
            alone: nn.Module = self._accelerator.prepare_model(model, evaluation_mode=True)
            return alone, self._accelerator.prepare_optimizer(optimizer)
        # The optimizer too, so that fp16 scaling can skip its step.
        prepared = self._accelerator.prepare(model, optimizer)
        return prepared[0], prepared[1]

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

    def clip(
        self, optimizer: Optimizer, groups: Sequence[Sequence[nn.Parameter]], limit: float | None
    ) -> Tensor:
        """Scale all gradients together so that their norm is at most `limit`.

        Returns: (len(groups) + 1,) float32, on the device: the 2-norm of each group's gradients
            before clipping, then of all. Nothing waits for the device.
        """
        # Norms and limit are of true gradients; fp16 ones still carry the loss scale.
        self._accelerator.unscale_gradients(optimizer)
        norms = torch.stack([self._norm(group) for group in groups])
        # The norm of the norms is the norm of all: every gradient is read once.
        total = torch.linalg.vector_norm(norms)
        if limit is not None:
            parameters = [parameter for group in groups for parameter in group]
            nn.utils.clip_grads_with_norm_(parameters, limit, total)
        return torch.cat([norms, total[None]])

    def _norm(self, parameters: Sequence[nn.Parameter]) -> Tensor:
        gradients = [one.grad for one in parameters if one.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.context.device)
        return nn.utils.get_total_norm(gradients).float()

    def step(self, optimizer: Optimizer) -> bool:
        """Update the weights and clear the gradients.

        Returns: False where fp16 overflowed and the update was skipped.
        """
        optimizer.step()
        # None and not 0: frees memory, and Adam leaves parameters without a gradient alone.
        optimizer.zero_grad(set_to_none=True)
        return not self._accelerator.optimizer_step_was_skipped

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
