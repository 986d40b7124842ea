"""How much of a device a training uses: an estimate from the number of parameters and tokens.

A token costs 2 operations a weight forward and 4 backward (Kaplan et al. 2020, section 2.1; 2 of
the 4 only where the weight learns, none where nothing before it does either). Embeddings are looked
up and count nothing; attention between tokens and between labels and tokens is left out, so that
the estimate is low for long segments and many labels. The measure is what large matrix products
reach on the same device in the same precision, measured once, and not what its maker says.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from plant_dist.runtime.apart import names_kept_apart
from plant_dist.runtime.context import RunContext

SIDE = {"cpu": 512, "cuda": 4096}  # rows of the matrices that are multiplied
REPEATS = 8  # the fastest counts: what else runs on a machine only slows
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Speed:
    """What turns tokens a second into operations a second.

    Attributes:
        flops_per_token: of one token, forward and backward.
        peak_flops: a second, of all ranks together.
    """

    flops_per_token: float
    peak_flops: float

    def teraflops(self, tokens_per_second: float) -> float:
        """Return 10^12 operations a second."""
        return tokens_per_second * self.flops_per_token / 1e12

    def utilisation(self, tokens_per_second: float) -> float:
        """Return the share of the peak that is used, in [0, 1] within what the estimate leaves."""
        return tokens_per_second * self.flops_per_token / self.peak_flops

    @classmethod
    def of(cls, model: nn.Module, idle: Iterable[nn.Module], context: RunContext) -> Speed:
        """Count a model's operations and measure a device. Before weights are shared out.

        Args: idle: parts of it that cost no products.
        """
        return cls(flops_per_token(model, idle), matrix_flops(context) * context.world)


def flops_per_token(model: nn.Module, idle: Iterable[nn.Module] = ()) -> float:
    """Return the operations of one token, forward and backward, by the module's rule.

    Args: idle: parts that cost no products, being kept or looked up.
    """
    apart = names_kept_apart(model)
    embeddings = [one for one in model.modules() if isinstance(one, nn.Embedding)]
    uncounted = {id(one) for module in (*embeddings, *idle) for one in module.parameters()}
    operations, learnt = 0, False
    for name, one in model.named_parameters():
        learnt |= one.requires_grad
        if one.ndim == 2 and id(one) not in uncounted and name not in apart:
            operations += one.numel() * (6 if one.requires_grad else 4 if learnt else 2)
    return float(operations)


def matrix_flops(context: RunContext) -> float:
    """Return the operations a second that products of large matrices reach on a device."""
    side = SIDE.get(context.device.type, SIDE["cpu"])
    kind = _TYPES[context.precision]
    one = torch.ones(side, side, dtype=kind, device=context.device)
    fastest = float("inf")
    # The first one sets things up, and is never the fastest.
    for _ in range(REPEATS):
        _wait(context.device)
        began = time.perf_counter()
        torch.mm(one, one)
        _wait(context.device)
        fastest = min(fastest, time.perf_counter() - began)
    return 2.0 * side**3 / max(fastest, 1e-9)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
