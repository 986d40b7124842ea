"""What moves the weights: parameter groups, the optimizer, thawing, and learning-rate schedules.

A task says which parameters learn at which rate (`ParameterGroup`); this module makes AdamW of
them, freezes what has not thawed yet, and shapes the rates over the steps. It knows no model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import get_ema_multi_avg_fn

from plant_dist.config.schema import OptimConfig
from plant_dist.errors import TrainingError
from plant_dist.runtime.apart import kept_apart
from plant_dist.train.rowwise import RowwiseAdamW
from plant_dist.train.state import LoopSettings

# Smith & Topin 2018 as torch's OneCycleLR has it: start at 1/25, end at 1/25 of 1/10,000.
ONE_CYCLE_START = 1 / 25
ONE_CYCLE_END = ONE_CYCLE_START / 1e4
VECTORS = " vectors"  # marks the part of a group that does not decay


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn alike.

    Attributes:
        name: shown in TensorBoard.
        parameters: disjoint from those of other groups.
        learning_rate: the peak of the schedule.
        weight_decay: decoupled; applied to matrices only, never to biases and norms.
        rowwise: matrices are label rows, scaled as wholes (`RowwiseAdamW`).
        depth: 0 trains from the start; 1 is the encoder's top block, and so on down.
    """

    name: str
    parameters: Sequence[nn.Parameter]
    learning_rate: float
    weight_decay: float = 0.0
    depth: int = 0
    rowwise: bool = False


def encoder_groups(
    blocks: Sequence[Sequence[nn.Parameter]], config: OptimConfig
) -> list[ParameterGroup]:
    """Return groups with discriminative learning rates (Howard & Ruder 2018, ULMFiT).

    The block at depth d learns at encoder_learning_rate * layer_decay ** (d - 1).

    Args:
        blocks: the encoder's parameters from the top block down; embeddings last.
    Returns: a group a block, named `encoder/NN` by depth; none where the encoder is frozen.
    """
    if config.freeze_encoder:
        return []
    return [
        ParameterGroup(
            name=f"encoder/{depth:02d}",
            parameters=list(block),
            learning_rate=config.encoder_learning_rate * config.layer_decay ** (depth - 1),
            weight_decay=config.weight_decay,
            depth=depth,
        )
        for depth, block in enumerate(blocks, start=1)
    ]


def build_optimizer(
    groups: Sequence[ParameterGroup], betas: tuple[float, float], device: torch.device
) -> RowwiseAdamW:
    """Return AdamW over the groups, each split into matrices, which decay, and the rest.

    Raises:
        TrainingError: there is nothing to train.
    """
    # Decay pulls weights to 0, which is no prior for a bias or the scale of a norm.
    parts = []
    for group in groups:
        for suffix, decay, rowwise, chosen in (
            ("", group.weight_decay, group.rowwise, [p for p in group.parameters if is_matrix(p)]),
            (VECTORS, 0.0, False, [p for p in group.parameters if not is_matrix(p)]),
        ):
            if chosen:
                part = {"params": chosen, "name": group.name + suffix, "rowwise": rowwise}
                parts.append({**part, "lr": group.learning_rate, "weight_decay": decay})
    if not parts:
        raise TrainingError(
            "no parameter is left to train: every group is empty or frozen; unfreeze the encoder "
            "(train.optim.freeze_encoder=false) or the ranker (model.freeze_ranker=false)"
        )
    # One kernel for all tensors; a tensor without a gradient is passed over in every variant.
    fused = device.type in ("cpu", "cuda")
    return RowwiseAdamW(parts, betas=betas, fused=fused)


def is_matrix(parameter: nn.Parameter) -> bool:
    """True for weights proper; a (L, 1) column of biases counts as a vector."""
    return parameter.ndim >= 2 and min(parameter.shape) > 1


def group_rates(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return the present learning rate of each group, by its name."""
    # Both parts of a group learn at one rate, so either may speak for it.
    return {part["name"].removesuffix(VECTORS): part["lr"] for part in optimizer.param_groups}


def check_groups(model: nn.Module, groups: Sequence[ParameterGroup]) -> None:
    """Check that every parameter that requires a gradient is in exactly one group.

    Raises:
        TrainingError: one is in none, or in two; names it.
    """
    counts: dict[nn.Parameter, int] = {}
    for group in groups:
        for parameter in group.parameters:
            counts[parameter] = counts.get(parameter, 0) + 1
    for name, parameter in model.named_parameters():
        expected = 1 if parameter.requires_grad else 0
        found = counts.get(parameter, 0)
        if found != expected:
            raise TrainingError(
                f"parameter {name} (requires_grad={parameter.requires_grad}) is in {found} "
                f"parameter groups, not {expected}; list it once in the task's groups, or freeze it"
            )


class Thaw:
    """Gradual unfreezing: groups of encoder blocks begin to train one after another, top first.

    The depths that occur are cut into as many runs as there are epochs, from the top; run i trains
    from `epochs[i]` on. A frozen parameter has requires_grad False: no gradient is computed for it,
    its `grad` stays None, AdamW passes it over and its moments start when it thaws, so freezing is
    exact. DistributedDataParallel is made while everything still requires its gradient, and with
    `find_unused_parameters`, which leaves such gradients None on every rank.

    Args:
        groups: all groups; depth 0 is never frozen.
        epochs: when each run thaws; may be fractions of epochs; empty freezes nothing.
    """

    def __init__(self, groups: Sequence[ParameterGroup], epochs: Sequence[float]) -> None:
        # Depth 0, the head, is not among them: it always trains.
        depths = sorted({group.depth for group in groups if group.depth > 0})
        begins = dict.fromkeys(depths, 0.0)
        # More epochs than depths leave empty runs; no epochs leave every depth at 0.
        for epoch, run in zip(epochs, np.array_split(depths, max(1, len(epochs))), strict=False):
            begins.update(dict.fromkeys(map(int, run), epoch))
        self._frozen = [(begins[group.depth], group) for group in groups if group.depth in begins]

    @property
    def waits(self) -> bool:
        """True where a group trains only from later on."""
        return any(begin > 0 for begin, _ in self._frozen)

    def apply(self, progress: float) -> None:
        """Freeze and thaw for a position.

        Args:
            progress: epochs done, with fractions.
        """
        for begin, group in self._frozen:
            for parameter in group.parameters:
                parameter.requires_grad_(progress >= begin)


def multiplier(settings: LoopSettings, step: int, total: int) -> float:
    """Return the share of the peak learning rate at a step.

    With s = step, N = total, W = round(warmup_fraction * N) and p = (s - W) / (N - W):

        warm-up    (s + 1) / W               for s < W
        constant   1
        linear     1 - p
        cosine     (1 + cos(pi p)) / 2       Loshchilov & Hutter 2017, one cycle
        sgdr       cosine of p * cycles mod 1: equal cycles, warm restarts
        one_cycle  cosine from 1/25 up to 1 at step warmup_fraction * N - 1, then down to
                   1/250,000 at step N - 1 (Smith & Topin 2018; torch's OneCycleLR)

    Args:
        step: optimizer steps done, from 0.
        total: optimizer steps of the whole run, >= 1.
    """
    if settings.schedule == "one_cycle":
        return _one_cycle(settings.warmup_fraction, step, total)
    warmup = round(settings.warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    # LambdaLR asks for one step beyond the last.
    done, length = min(step, total) - warmup, max(1, total - warmup)
    if settings.schedule == "linear":
        return 1.0 - done / length
    if settings.schedule == "cosine":
        return _cosine(1.0, 0.0, done / length)
    if settings.schedule == "sgdr":
        # In integers, so that a restart falls on its step whatever the rounding.
        return _cosine(1.0, 0.0, (done * settings.sgdr_cycles) % length / length)
    return 1.0


def _one_cycle(rise: float, step: int, total: int) -> float:
    top, end = rise * total - 1, total - 1
    if step <= top and top > 0:
        return _cosine(ONE_CYCLE_START, 1.0, step / top)
    top = max(top, 0.0)
    return _cosine(1.0, ONE_CYCLE_END, min(1.0, (step - top) / max(end - top, 1.0)))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * share))


def build_schedule(
    optimizer: torch.optim.Optimizer, settings: LoopSettings, total: int
) -> LambdaLR:
    """Return the schedule, one multiplier for every group's own peak; step it once an update."""
    return LambdaLR(optimizer, lambda step: multiplier(settings, step, total))


class Averages:
    """Exponential moving averages of the weights: a = decay a + (1 - decay) w after each update.

    The first update copies the weights, as torch's AveragedModel does. Only parameters that train
    are averaged; buffers are constants here.

    Args:
        model: the bare module.
        decay: in (0, 1].
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._update = get_ema_multi_avg_fn(decay)
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.tensors = {n: p.detach().clone() for n, p in self._parameters.items()}

    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        averages, weights = list(self.tensors.values()), list(self._parameters.values())
        if step == 1:
            torch._foreach_copy_(averages, [one.detach() for one in weights])
        else:
            self._update(averages, [one.detach() for one in weights], step)

    def swap(self) -> None:
        """Exchange weights and averages, without copying; call again to change back."""
        # Optimizer and DDP hold the parameter objects, so only what is inside may change places.
        for name, parameter in self._parameters.items():
            parameter.data, self.tensors[name] = self.tensors[name], parameter.data


class StartingPoint:
    """The weights that train, as they were before; mixed into the trained ones at the end.

    w ← (1 - share) w + share w_0. What was pretrained and planted holds for texts unlike the
    training texts, where fine-tuning forgets it (Wortsman et al., "Robust fine-tuning of zero-shot
    models", CVPR 2022).
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
        self._apart = kept_apart(model)
        self._start = [one.detach().clone() for one in self._parameters]

    @torch.no_grad()
    def mix(self, share: float) -> None:
        """Move the model's weights towards the start, by a share in [0, 1]."""
        for module in self._apart:
            module.settle()
        torch._foreach_lerp_(self._parameters, self._start, share)
