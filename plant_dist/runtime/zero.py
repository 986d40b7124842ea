"""The engines zero1, zero2 and zero3: DeepSpeed shares out optimizer state, gradients, weights.

DeepSpeed cuts parameters into flat stretches, a stretch a rank, and hands them to an AdamW of
ours. Two kinds of parameters it never sees: rows that look after themselves (`apart.py`), and
groups that are scaled by rows, which a flat stretch does not know; those are whole on every rank,
as under DDP, and the loop's own optimizer moves them. Clipping is by the norm of all together.
This is the only place that knows DeepSpeed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import convert_outputs_to_fp32  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.optim import Optimizer

from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import RuntimeSetupError
from plant_dist.logs import get_logger
from plant_dist.runtime.apart import kept_apart
from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine, Update, gradient_norm
from plant_dist.runtime.held import Held
from plant_dist.runtime.stretches import HeldStretches, Shared
from plant_dist.runtime.zero_settings import STAGES, zero_settings

log = get_logger(__name__)


class ZeroEngine(Engine):
    """Runs steps under DeepSpeed's ZeRO; as `Engine` otherwise.

    Args:
        context: the place of this process.
        runtime: stage, offload, raw entries.
        clip_norm: largest gradient norm; None never clips.

    Raises:
        RuntimeSetupError: DeepSpeed is not installed.
        ConfigError: a raw entry says what a setting of ours decides.
    """

    def __init__(
        self, context: RunContext, runtime: RuntimeConfig, clip_norm: float | None = None
    ) -> None:
        super().__init__(context)
        self.stage = STAGES[runtime.engine]
        self._settings = zero_settings(runtime, clip_norm, context.device.type)
        self._deepspeed = _import_deepspeed(context)
        _join_group(context)

    def prepare(self, model: nn.Module, optimizer: Optimizer) -> nn.Module:
        """Share out a model over its processes; as `Engine.prepare`.

        Raises:
            RuntimeSetupError: nothing is left to share out.
        """
        by_rows = _scaled_by_rows(model, optimizer)
        self._apart = [*kept_apart(model), *by_rows]
        hidden = {id(one) for module in self._apart for one in module.parameters()}
        self._beside = [p for module in by_rows for p in module.parameters() if p.requires_grad]
        model.to(self.context.device)
        for parameter in self._beside:
            # As DeepSpeed does for the others: rank 0's weights count.
            dist.broadcast(parameter.detach(), src=0)
        self._optimizer = optimizer
        parts = {}
        for number, group in enumerate(optimizer.param_groups):
            shared = [p for p in group["params"] if id(p) not in hidden and p.requires_grad]
            if shared:
                parts[number] = {**group, "params": shared}
        if not parts:
            raise RuntimeSetupError(
                f"runtime.engine is zero{self.stage}, but nothing is left to share out: the "
                "encoder is frozen, and label rows stay whole; set runtime.engine=ddp"
            )
        # Numbers, since an optimizer that is filled from a checkpoint has groups of its own anew.
        self._numbers = list(parts)
        self._first = [id(part["params"][0]) for part in parts.values()]
        self._before = _attributes(model)
        if self.context.precision == "bf16":
            # Inside DeepSpeed, which would turn off what is on outside; as DDP computes.
            inside = self._accelerator.autocast()(model.forward)
            model.forward = convert_outputs_to_fp32(inside)
        # Every setting is in the groups; the loop's own class knows rows, which are not here.
        inner = torch.optim.AdamW(list(parts.values()), fused=optimizer.defaults.get("fused"))
        with _without(model, self._apart):
            self._engine, *_ = self._deepspeed.initialize(
                model=model, optimizer=inner, config=self._settings, dist_init_required=False
            )
        self._inner, self._zero = inner, self._engine.optimizer
        if self.stage == 3:
            self._zero.parameter_offload.module = _OnlyShared(model)
        self._norms: list[Tensor] = []
        self._listen_to_norms()
        wrapped: nn.Module = self._engine
        return wrapped

    def _listen_to_norms(self) -> None:
        """Have the norms of all groups told, and clipping count what is kept whole beside."""
        zero = self._zero
        if self.stage == 3:
            ask = zero._get_norm_groups

            def told() -> list[Tensor]:
                self._norms = ask()
                return [*self._norms, self._norm_beside]

            zero._get_norm_groups = told
            return

        from deepspeed.runtime.utils import combine_grad_norm_groups

        def combined(norm_type: float = 2) -> Tensor:
            members = zero.params_in_partition
            self._norms = [
                zero.complete_grad_norm_calculation_for_cpu_offload(members[i])
                if zero.cpu_offload
                else zero.get_grad_norm_direct(zero.averaged_gradients[i], members[i])
                for i in range(len(members))
            ]
            norm: Tensor = combine_grad_norm_groups([*self._norms, self._norm_beside])
            return norm

        zero.scaled_global_norm = combined

    @contextmanager
    def accumulate(self, model: nn.Module, last: bool) -> Iterator[None]:
        """Surround forward and backward of one batch; ranks exchange gradients after the last."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield
        if not last:
            # Counts the batch; weights move at the boundary alone.
            self._engine.step()

    def backward(self, loss: Tensor) -> None:
        """Add a loss's gradients."""
        self._engine.backward(loss)

    def update(self, groups: Sequence[Sequence[nn.Parameter]], limit: float | None) -> Update:
        """Update the weights, and clear the gradients; as `Engine.update`."""
        for number, part in zip(self._numbers, self._inner.param_groups, strict=True):
            # The schedule moves the loop's optimizer, which knows every group.
            part["lr"] = self._optimizer.param_groups[number]["lr"]
        self._average_beside()
        beside = set(map(id, self._beside))
        own = [[one for one in group if id(one) in beside] for group in groups]
        squares = torch.stack([gradient_norm(group, self.context.device) for group in own]) ** 2
        self._norm_beside = squares.sum().sqrt()
        self._engine.step()
        place = {id(one): number for number, group in enumerate(groups) for one in group}
        for number, norm in enumerate(self._norms):
            part_number = self._zero.sub_group_to_group_id[number] if self.stage == 3 else number
            # DeepSpeed says -1 where a norm is not finite.
            finite = torch.where(norm >= 0, norm, torch.nan).to(squares)
            squares[place[self._first[part_number]]] += finite**2
        total = squares.sum().sqrt()
        if limit is not None and self._beside:
            nn.utils.clip_grads_with_norm_(self._beside, limit, total)
        # What DeepSpeed shares out has no gradient any more, so that it is passed over.
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return Update(torch.cat([squares.sqrt(), total[None]]), applied=True)

    def _average_beside(self) -> None:
        """Take the mean over ranks of the gradients of what is kept whole, all in one exchange."""
        gradients = [one.grad for one in self._beside if one.grad is not None]
        if self.context.world == 1 or not gradients:
            return
        flat = torch.cat([one.reshape(-1) for one in gradients]).div_(self.context.world)
        dist.all_reduce(flat)
        start = 0
        for one in gradients:
            one.copy_(flat[start : start + one.numel()].view_as(one))
            start += one.numel()

    def held(self, model: nn.Module, optimizer: Optimizer, averages: Mapping[str, Tensor]) -> Held:
        """Return what of a prepared model and its optimizer lies on this rank."""
        shared = Shared(self._zero, self._inner, self.stage)
        return HeldStretches(
            model, optimizer, averages, self.context.rank, self.context.world, shared
        )

    def whole(self) -> AbstractContextManager[None]:
        """Have all weights on every rank inside the block, to read. All ranks must call."""
        return self._gathered() if self.stage == 3 else nullcontext()

    @contextmanager
    def _gathered(self) -> Iterator[None]:
        # Without DeepSpeed's hooks, which would let go of a module's weights as soon as it has
        # run, and in which ranks would wait for each other; they may run unlike numbers of times.
        offload = self._zero.parameter_offload
        offload.partition_all_parameters()
        shared = [p for p in self._engine.module.parameters() if hasattr(p, "ds_id")]
        offload._remove_module_hooks()
        try:
            with self._deepspeed.zero.GatheredParameters(shared):
                yield
        finally:
            offload.forward_hooks, offload.backward_hooks = [], []
            listed, offload.module = offload.module, self._engine.module
            with _without(self._engine.module, self._apart):
                offload.setup_zero_stage3_hooks()
            offload.module = listed

    def unwrap(self, model: nn.Module) -> nn.Module:
        """Return the module inside the wrapper."""
        bare: nn.Module = self._engine.module
        return bare

    def release(self, model: nn.Module) -> nn.Module:
        """Return the module as it came, all weights on every rank. All ranks must call."""
        bare = self.unwrap(model)
        values: dict[int, Tensor] = {}
        with torch.no_grad():
            parameter: Any
            for parameter in bare.parameters():
                if hasattr(parameter, "ds_id"):
                    # One after another: no more than one is there twice.
                    parameter.all_gather()
                    values[id(parameter)] = parameter.data.clone()
                    parameter.partition()
                elif id(parameter) not in {id(one) for one in self._beside}:
                    # DeepSpeed's are views of one buffer.
                    values[id(parameter)] = parameter.data.clone()
        self._engine.destroy()
        for parameter in bare.parameters():
            parameter.data = values.get(id(parameter), parameter.data)
        _restore(bare, self._before)
        self._accelerator.free_memory()
        del self._engine, self._zero, self._inner
        return bare


def _import_deepspeed(context: RunContext) -> Any:
    """Import DeepSpeed for a device, late: it looks for compilers and GPUs as it is imported.

    Raises:
        RuntimeSetupError: it is not installed.
    """
    os.environ.setdefault("DS_ACCELERATOR", context.device.type)
    # Launchers set it; one process by itself has none.
    os.environ.setdefault("LOCAL_RANK", str(context.local_rank))
    try:
        import deepspeed
        from deepspeed.utils import logger
    except (ImportError, OSError) as error:
        raise RuntimeSetupError(
            f"runtime.engine is one of DeepSpeed's, which cannot be imported ({error}); run "
            "launchers/setup.sh deepspeed, or set runtime.engine=ddp"
        ) from None
    # It says much, of settings that were derived for it.
    logger.setLevel("ERROR")
    # A collective in shared memory, for inference alone: compiling it takes minutes.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _join_group(context: RunContext) -> None:
    """Make a group of one where no launcher made any: DeepSpeed always speaks to a group."""
    if not dist.is_initialized():
        backend = "gloo" if context.device.type == "cpu" else "nccl"
        dist.init_process_group(
            backend, store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1
        )


def _scaled_by_rows(model: nn.Module, optimizer: Optimizer) -> list[nn.Module]:
    """Return the modules with parameters that the optimizer scales by rows, and ranks exchange."""
    apart = {id(one) for module in kept_apart(model) for one in module.parameters()}
    by_rows = {
        id(one) for group in optimizer.param_groups if group.get("rowwise")
        for one in group["params"]
    }  # fmt: skip
    return [
        module for module in model.modules()
        if any(id(one) in by_rows - apart for one in module.parameters(recurse=False))
    ]  # fmt: skip


@contextmanager
def _without(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take modules out of a model, each back to its place afterwards."""
    wanted = {id(module) for module in modules}
    places = [
        (parent, name, child) for parent in model.modules()
        for name, child in parent._modules.items() if id(child) in wanted
    ]  # fmt: skip
    for parent, name, _ in places:
        parent._modules[name] = None
    try:
        yield
    finally:
        for parent, name, child in places:
            parent._modules[name] = child


class _OnlyShared:
    """A model as stage 3 walks over it after every step: without what it does not know."""

    def __init__(self, model: nn.Module) -> None:
        self._shared = [(n, p) for n, p in model.named_parameters() if hasattr(p, "ds_id")]

    def named_parameters(self, recurse: bool = True) -> list[tuple[str, nn.Parameter]]:
        """Return what was shared out."""
        return self._shared

    def ds_external_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return nothing: all of them are named."""
        return []


def _attributes(model: nn.Module) -> dict[int, set[str]]:
    """Return the names of what modules and parameters carry."""
    return {id(one): set(vars(one)) for one in (*model.modules(), *model.parameters())}


def _restore(model: nn.Module, before: Mapping[int, set[str]]) -> None:
    """Take away what modules and parameters have been given since `_attributes`."""
    for one in (*model.modules(), *model.parameters()):
        for name in set(vars(one)) - before[id(one)]:
            delattr(one, name)
    for module in model.modules():
        # DeepSpeed's dictionaries fetch weights when they are looked up.
        module._parameters = dict(module._parameters)
