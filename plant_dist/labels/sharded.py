"""The sharded engine: each rank holds a range of labels, on TorchRec's row-wise sharding.

Row r lies on rank r // ceil(L / ranks). A batch's distinct ids go to their owners and rows come
back (two all-to-alls); gradients go home the same way and FBGEMM's fused kernel moves the rows
there, so no rank ever holds a gradient or an optimizer state of rows that are not its own. Rows
may lie in unified memory, in which a GPU caches a share of them. One TorchRec collection serves
the fields of one width that learn at one rate.

Shapes: U distinct labels of a batch, L labels, n labels owned, W a field's width in the kernel.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from plant_dist.errors import ConfigError, RuntimeSetupError, TrainingError
from plant_dist.labels.files import SavedTable
from plant_dist.labels.sparse import SparseRows, Touched
from plant_dist.labels.table import FROZEN_FIELDS
from plant_dist.labels.updates import LazyAdam, RowAdagrad, RowOptimizer

KERNEL_MULTIPLE = 4  # FBGEMM's rows are multiples of this many numbers
KERNELS = {"device": "fused", "uvm": "fused_uvm", "uvm_caching": "fused_uvm_caching"}
# FBGEMM's names of what an optimizer remembers, and ours.
STATES = {
    "momentum1": {"adagrad": "sum", "lazy_adam": "mean"},
    "momentum2": {"lazy_adam": "square"},
}
# Fields that learn at another rate than most: the ranker's, the retriever's, or none at all.
SEPARATE = {"factor": "ranker", "retrieval": "retriever", **dict.fromkeys(FROZEN_FIELDS, "frozen")}


@dataclass(frozen=True)
class Collection:
    """Fields of one width that share an all-to-all.

    Attributes:
        names: the fields. width: of each. padded: numbers of a kernel's row.
        module: TorchRec's sharded collection.
    """

    names: tuple[str, ...]
    width: int
    padded: int
    module: Any

    @property
    def shrink(self) -> float:
        """√(width / padded): filling up dilutes the mean square of a row by its square."""
        return math.sqrt(self.width / self.padded)


class ShardedRows(SparseRows):
    """Rows spread over ranks; arguments as `SparseRows`. All ranks must make it.

    Args:
        device: where this rank's rows are computed with.
        placement: device, uvm or uvm_caching; on a CPU, rows are in host memory as it is.
        cache_share: share of rows that a GPU caches under uvm_caching.

    Raises:
        RuntimeSetupError: TorchRec is not installed.
        ConfigError: the kernel has no such optimizer here, or a rank would own no label.
    """

    def __init__(
        self, count: int, widths: Mapping[str, int], optimizer: RowOptimizer,
        zero: tuple[str, ...] = (), device: torch.device | None = None,
        placement: str = "device", cache_share: float = 0.2,
    ) -> None:  # fmt: skip
        super().__init__(count, widths, optimizer, zero)
        _join_group()
        device = device or torch.device("cpu")
        if isinstance(optimizer, LazyAdam) and device.type == "cpu":
            raise ConfigError(
                "labels.optimizer is lazy_adam, which the sharded engine has on GPUs only; set "
                "labels.optimizer=adagrad, or labels.engine=replicated"
            )
        self.own = owned(count, dist.get_rank(), dist.get_world_size())
        kernel = KERNELS[placement] if device.type == "cuda" else KERNELS["device"]
        sharing = dict.fromkeys((width, SEPARATE.get(name)) for name, width in self.widths.items())
        # Not submodules: state dicts, wrappers and `to` must not find what TorchRec keeps.
        # TorchRec draws starting values of its own, which must not move the run's generator.
        with torch.random.fork_rng():
            self._collections = tuple(
                _collection(
                    tuple(
                        n for n, w in self.widths.items() if (w, SEPARATE.get(n)) == (width, rate)
                    ),
                    width, count, optimizer, device, kernel, cache_share,
                )
                for width, rate in sharing
            )  # fmt: skip
        of_field = {name: one for one in self._collections for name in one.names}
        for name in self.widths:
            # A view of the kernel's own memory, without what fills it up.
            local = _local(of_field[name].module.state_dict()[f"embeddings.{name}.weight"])
            local.zero_()
            self.fields[name] = nn.Parameter(local[:, : self.widths[name]])
        self.reset()

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ShardedRows:
        """Stay where the kernel keeps the rows: a copy elsewhere would learn nothing."""
        return self

    @property
    def counts(self) -> list[int]:
        """Labels of each rank."""
        world = dist.get_world_size()
        return [len(owned(self.count, rank, world)) for rank in range(world)]

    def begin(self, optimizer: Optimizer) -> None:
        """As `SparseRows`, and before the forward pass, in which the kernel reads the rate.

        Raises:
            TrainingError: fields that one kernel moves have rates of their own.
        """
        super().begin(optimizer)
        for one in self._collections:
            rates = {self._rates[name] for name in one.names}
            if len(rates) > 1:
                raise TrainingError(
                    f"label fields {', '.join(one.names)} have learning rates {sorted(rates)}; the "
                    "sharded engine moves fields of one width at one rate; give them one group"
                )
            adagrad = isinstance(self.optimizer, RowAdagrad)
            rate = rates.pop() * (one.shrink if adagrad else 1.0)
            fused = one.module.fused_optimizer
            for group in fused.param_groups:
                group["lr"] = rate
            # Hands the rate to the kernel; rows move in its backward pass alone.
            fused.step()

    def _look_up(self, ids_U: Tensor) -> tuple[dict[str, Tensor], Mapping[str, Tensor]]:
        if torch.is_grad_enabled():
            self._count_steps()
        # All sent off before any is waited for.
        waiting = [one.module(_features(one.names, ids_U)) for one in self._collections]
        found: dict[str, Tensor] = {}
        for one, arriving in zip(self._collections, waiting, strict=True):
            arrived = arriving.wait()
            found.update({name: arrived[_feature(name)].values() for name in one.names})
        trimmed = {name: found[name][:, : self.widths[name]] for name in self.widths}
        return trimmed, trimmed

    def _count_steps(self) -> None:
        # The kernel takes every lookup for a step of Adam: validation's, and each of a step's
        # passes. What it counts on from must be the steps that were made.
        for kernel in self._kernels():
            module = kernel.emb_module
            module.iter.fill_(self.steps)
            module.iter_cpu.fill_(self.steps)

    def _kernels(self) -> Iterator[Any]:
        for one in self._collections:
            for lookup in one.module._lookups:
                yield from getattr(lookup, "_emb_modules", ())

    def _send(self, touched: Touched, gradients: Mapping[str, Tensor]) -> None:
        # One collection after another, in an order that is every rank's. TorchRec's backward pass
        # divides by the ranks, so that owners see the mean.
        for one in self._collections:
            names = [name for name in one.names if name in gradients]
            if names:
                outputs = [touched.source[name] for name in names]
                torch.autograd.backward(outputs, [gradients[name] for name in names])

    def state_of(self, name: str) -> dict[str, Tensor]:
        """Return the kernel's state of a field, in the units of `RowOptimizer`."""
        one = next(one for one in self._collections if name in one.names)
        found: dict[str, Tensor] = {}
        for part, tensor in self._kernel_state(one, name).items():
            if part == "sum":
                found[part] = tensor.view(-1, 1) * (one.padded / one.width)
            else:
                found[part] = tensor[:, : one.width]
        return found

    def _kernel_state(self, one: Collection, name: str) -> dict[str, Tensor]:
        state = one.module.fused_optimizer.state_dict()["state"][f"embeddings.{name}.weight"]
        return {
            STATES[part][self.optimizer.name]: _local(state[f"{name}.{part}"])
            for part in STATES
            if f"{name}.{part}" in state
        }

    def _resume(self, filled: SavedTable) -> None:
        for one in self._collections:
            for name in one.names:
                for part, kernels in self._kernel_state(one, name).items():
                    # Moments are views, and filled already.
                    if part == "sum" and part in filled.tensors[name]:
                        read = filled.tensors[name][part] * (one.width / one.padded)
                        kernels.copy_(read.view_as(kernels))

    def settle(self) -> None:
        """See `KeptApart`: under uvm_caching the newest values may be in the GPU's cache alone.

        Not between a forward pass and its `step`, which finds rows by their place in the cache.
        """
        for kernel in self._kernels():
            kernel.flush()
            # Flushed alone, cached rows would go on hiding what is written, and overwrite it.
            kernel.purge()


def owned(count: int, rank: int, world: int) -> range:
    """Return the labels whose rows a rank owns.

    Raises:
        ConfigError: some rank would own none.
    """
    size = -(-count // world)
    if size * (world - 1) >= count:
        raise ConfigError(
            f"{count} labels over {world} ranks would leave a rank without any; set "
            "labels.engine=replicated, or start fewer processes"
        )
    return range(rank * size, min((rank + 1) * size, count))


def _join_group() -> None:
    """Make a group of one where no launcher made any: TorchRec always speaks to a group."""
    if not dist.is_initialized():
        alone = torch._C._distributed_c10d.HashStore()
        dist.init_process_group("gloo", store=alone, rank=0, world_size=1)


def _collection(
    names: tuple[str, ...], width: int, count: int, optimizer: RowOptimizer,
    device: torch.device, kernel: str, cache_share: float,
) -> Collection:  # fmt: skip
    parts = _torchrec()
    padded = -(-width // KERNEL_MULTIPLE) * KERNEL_MULTIPLE
    shrink = math.sqrt(width / padded)
    tables = [
        parts["EmbeddingConfig"](
            name=name, embedding_dim=padded, num_embeddings=count, feature_names=[_feature(name)]
        )
        for name in names
    ]
    # Sizes only: each rank makes its own rows and no more.
    module = parts["EmbeddingCollection"](tables=tables, device=torch.device("meta"))
    weights = [module.embeddings[name].weight for name in names]
    kind, settings = _fused(optimizer, shrink)
    parts["apply"](parts[kind], weights, settings)
    world = dist.get_world_size()
    places: list[int | None] = [None] * world
    dist.all_gather_object(places, device.index)
    plan = parts["plan"](
        module, {name: parts["row_wise"](compute_kernel=kernel) for name in names},
        local_size=ranks_a_node(places), world_size=world, device_type=device.type,
    )  # fmt: skip
    for sharding in plan.values():
        if kernel == KERNELS["uvm_caching"]:
            sharding.cache_params = parts["CacheParams"](load_factor=cache_share)
    env = parts["ShardingEnv"].from_process_group(dist.group.WORLD)
    return Collection(names, width, padded, parts["Sharder"]().shard(module, plan, env, device))


def ranks_a_node(places: Sequence[int | None]) -> int:
    """Return the ranks of a machine, which TorchRec takes rank r's GPU to be the (r mod n)th of.

    Args: places: the number of each rank's GPU on its machine; None on a CPU.

    Raises:
        RuntimeSetupError: ranks have other GPUs than that.
    """
    if None in places:
        return len(places)
    count = len(set(places))
    if list(places) != [rank % count for rank in range(len(places))]:
        raise RuntimeSetupError(
            f"labels.engine is sharded, which wants ranks in the order of machines, and in each of "
            f"GPUs 0, 1, …, but they have GPUs {', '.join(map(str, places))}; start as many on "
            "every node, one node after the other, with all its GPUs visible to each "
            "(--gpu-bind=none, --distribution=block)"
        )
    return count


def _fused(optimizer: RowOptimizer, shrink: float) -> tuple[str, dict[str, Any]]:
    """Return TorchRec's optimizer and its settings; rates are set by every step."""
    if isinstance(optimizer, RowAdagrad):
        # As the rate in `begin`: both sides of √v + ε shrink alike.
        return "RowWiseAdagrad", {"lr": 0.0, "eps": optimizer.eps * shrink}
    assert isinstance(optimizer, LazyAdam)  # there are two
    return "Adam", {"lr": 0.0, "betas": optimizer.betas, "eps": optimizer.eps}


def _torchrec() -> dict[str, Any]:
    """Import what is needed of TorchRec, late, since only this engine needs it."""
    try:
        with warnings.catch_warnings():
            # Of its own use of torch, about which a user can do nothing.
            warnings.simplefilter("ignore")
            import torchrec
            from torchrec.distributed.embedding import EmbeddingCollectionSharder
            from torchrec.distributed.sharding_plan import (
                construct_module_sharding_plan,
                row_wise,
            )
            from torchrec.distributed.types import CacheParams, ShardingEnv
            from torchrec.optim import Adam, RowWiseAdagrad
            from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward
    except (ImportError, OSError) as error:
        raise RuntimeSetupError(
            f"labels.engine is sharded, which needs TorchRec ({error}); install it as "
            "docs/labels.md says, or set labels.engine=replicated"
        ) from None
    return {
        "EmbeddingConfig": torchrec.EmbeddingConfig,
        "EmbeddingCollection": torchrec.EmbeddingCollection,
        "Sharder": EmbeddingCollectionSharder,
        "plan": construct_module_sharding_plan,
        "row_wise": row_wise,
        "CacheParams": CacheParams,
        "ShardingEnv": ShardingEnv,
        "Adam": Adam,
        "RowWiseAdagrad": RowWiseAdagrad,
        "apply": apply_optimizer_in_backward,
    }


def _feature(name: str) -> str:
    return f"label_{name}"


def _features(names: Iterable[str], ids_U: Tensor) -> Any:
    from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

    keys = [_feature(name) for name in names]
    lengths = torch.full((len(keys),), len(ids_U), dtype=torch.int64, device=ids_U.device)
    return KeyedJaggedTensor(keys=keys, values=ids_U.repeat(len(keys)), lengths=lengths)


def _local(sharded: Any) -> Tensor:
    """Return this rank's part of a sharded tensor: the kernel's own memory."""
    tensor: Tensor = sharded.local_shards()[0].tensor
    return tensor.detach()
