"""What ranks say to each other: sums, flags, objects. Every function is a no-op at world 1.

All ranks must call each function, in the same order: a rank that does not leaves the others
waiting. Objects travel by torch's own pickling between processes of one run; nothing of it is
ever written to a file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from plant_dist.runtime.context import TIMEOUT, RunContext

T = TypeVar("T")


def sum_across(context: RunContext, values: Tensor) -> Tensor:
    """Return the element-wise sum over ranks. All ranks must call, with the same shape.

    Args:
        values: any shape and numeric dtype, on `context.device` (or CPU where the group is gloo).
    Returns: a new tensor of the same shape, dtype and device, equal on every rank.
    """
    if context.world == 1:
        return values.clone()
    # A copy on the device of the group; the caller's tensor must not change under it.
    total = values.detach().to(context.device, copy=True)
    dist.all_reduce(total)
    return total.to(values.device)


def mean_across(context: RunContext, values: Tensor) -> Tensor:
    """Return the element-wise mean over ranks, of a floating tensor. All ranks must call."""
    return sum_across(context, values) / context.world


def any_rank(context: RunContext, flag: bool) -> bool:
    """Return True on every rank if the flag is True on any. All ranks must call.

    The flags travel between host processes; no GPU is waited for.
    """
    if context.world == 1:
        return flag
    total = torch.tensor(int(flag))
    dist.all_reduce(total, op=dist.ReduceOp.MAX, group=_host_group())
    return bool(total.item())


def gather_objects(context: RunContext, value: T) -> list[T]:
    """Return every rank's value, in rank order, on every rank. All ranks must call."""
    if context.world == 1:
        return [value]
    values: list[Any] = [None] * context.world
    dist.all_gather_object(values, value, group=_host_group())
    return values


def exchange_arrays(context: RunContext, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Give every rank its array, and return those that the ranks have for this one.

    All ranks must call, with arrays of one dtype; lengths may differ. What travels grows with the
    number of ranks, where gathering would grow with its square.

    Args:
        arrays: one a rank, in rank order.
    Returns: flat arrays, one a rank, in rank order.
    """
    if context.world == 1:
        return [arrays[0].reshape(-1)]
    dtype = arrays[0].dtype
    sending = torch.tensor([array.nbytes for array in arrays])
    coming = torch.empty_like(sending)
    dist.all_to_all_single(coming, sending, group=_host_group())
    # As bytes, which every backend carries whatever the dtype means.
    outgoing = np.concatenate([array.reshape(-1) for array in arrays]).view(np.uint8)
    arrived = torch.empty(int(coming.sum()), dtype=torch.uint8)
    dist.all_to_all_single(
        arrived, torch.from_numpy(outgoing), coming.tolist(), sending.tolist(), group=_host_group()
    )
    bounds = np.cumsum(coming.numpy())[:-1]
    return [part.copy().view(dtype) for part in np.split(arrived.numpy(), bounds)]


def broadcast_object(context: RunContext, value: T, source: int = 0) -> T:
    """Return the value that rank `source` has, on every rank. All ranks must call."""
    if context.world == 1:
        return value
    # torch fills the list in place on the ranks that receive.
    box = [value]
    dist.broadcast_object_list(box, src=source, group=_host_group())
    return box[0]


def barrier(context: RunContext) -> None:
    """Wait until every rank has come here. All ranks must call."""
    if context.world > 1:
        dist.barrier(group=_host_group())


def end_run(context: RunContext) -> None:
    """Leave the process group, after everyone has finished. All ranks must call, as the last."""
    if context.world > 1:
        barrier(context)
        # A group of a process group that is no more must not be handed out in the next run.
        _host_group.cache_clear()
        dist.destroy_process_group()


@lru_cache(maxsize=1)
def _host_group() -> dist.ProcessGroup | None:
    # NCCL carries only GPU tensors and would make the host wait for the GPU's queue.
    if dist.get_backend() == "gloo":
        return None
    group: dist.ProcessGroup | None = dist.new_group(backend="gloo", timeout=TIMEOUT)
    return group
