"""Where this process runs: its rank, the number of ranks, its device, its arithmetic, its seeds.

`start_run` turns the launcher's environment and `RuntimeConfig` into one `RunContext`, and refuses
whatever would otherwise run silently on less than was asked for. It must not know what is computed.
"""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace
from datetime import timedelta

import numpy as np
import torch
from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]

from plant_dist import artifacts
from plant_dist.config.schema import RuntimeConfig
from plant_dist.errors import RuntimeSetupError
from plant_dist.logs import get_logger
from plant_dist.runtime.allocator import keep_freed_memory
from plant_dist.runtime.launchers import TRUE, reconcile

log = get_logger(__name__)

# One rank prepares or writes while the others wait, which may take hours; a rank that died is
# noticed by the launcher long before.
TIMEOUT = timedelta(hours=6)
WORLD_SIZE_NAMES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANK_NAMES = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@dataclass(frozen=True)
class RunContext:
    """One process's place in a run.

    Attributes:
        rank: 0 .. world-1 over all machines.
        local_rank: rank on this machine; chooses the GPU.
        world: number of processes.
        device: where this process computes.
        precision: fp32, bf16 or fp16: the arithmetic of the forward pass.
        seed: the seed of the run, the same on every rank.
    """

    rank: int = 0
    local_rank: int = 0
    world: int = 1
    device: torch.device = torch.device("cpu")
    precision: str = "fp32"
    seed: int = 0

    @property
    def is_main(self) -> bool:
        """True on the one process that writes files and speaks."""
        return self.rank == 0


def start_run(runtime: RuntimeConfig, seed: int = 0) -> RunContext:
    """Join the process group, choose the device, set threads and seeds. All ranks must call.

    Args:
        runtime: what was asked for.
        seed: seed of the generators, the same on every rank, so that models are made alike.

    Raises:
        RuntimeSetupError: the device is absent, it cannot compute in the precision, ranks would
            compute in unlike ones, the number of processes is not the one asked for or announced
            by the launcher, or the launcher asks for another engine or precision.
    """
    kind = choose_device(runtime.device)
    precision = choose_precision(runtime.precision, kind)
    reconcile(replace(runtime, precision=precision))
    announced = announced_world()
    _check_launcher(announced, kind)
    # Joins the process group; a second call in this process finds the first one's state.
    state = PartialState(cpu=kind == "cpu", timeout=TIMEOUT)
    _check_world(state.num_processes, announced, runtime.processes)
    if state.device.type != kind:
        raise RuntimeSetupError(
            f"runtime.device asks for {kind}, but this process has started on "
            f"{state.device.type}; start a new process"
        )
    if kind == "cpu":
        keep_freed_memory()
    if runtime.threads is not None:
        torch.set_num_threads(runtime.threads)
    _check_alike(precision)
    _prefer_deterministic_kernels(runtime.deterministic)
    seed_everything(seed)
    return RunContext(
        rank=state.process_index,
        # A launcher that sets no LOCAL_RANK leaves it at -1.
        local_rank=max(0, state.local_process_index),
        world=state.num_processes,
        device=state.device,
        precision=precision,
        seed=seed,
    )


def choose_device(asked: str) -> str:
    """Return cpu, cuda or mps for what the config asks.

    `auto` takes the first there is of cuda, mps, cpu, and cpu where ACCELERATE_USE_CPU is true.

    Raises:
        RuntimeSetupError: the device asked for is absent, or the launcher was told to use the CPU.
    """
    cpu_only = os.environ.get("ACCELERATE_USE_CPU", "").lower() in TRUE
    present = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if asked == "auto":
        return "cpu" if cpu_only else next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
    if not present[asked]:
        there = ", ".join(kind for kind, found in present.items() if found)
        raise RuntimeSetupError(
            f"runtime.device is {asked}, which this machine (or this build of torch) does not "
            f"have; found: {there}; set runtime.device=auto, or install torch for {asked}"
        )
    if cpu_only and asked != "cpu":
        raise RuntimeSetupError(
            f"runtime.device is {asked}, but ACCELERATE_USE_CPU is set; unset it, or set "
            "runtime.device=cpu"
        )
    return asked


def choose_precision(asked: str, kind: str) -> str:
    """Return fp32, bf16 or fp16 for what the config asks of a device.

    `auto` takes bf16 where the device computes it in hardware, and fp32 elsewhere: a CPU that
    emulates bf16 multiplies matrices 20 to 30 times slower than in fp32. Where bf16 is asked for by
    name there, the log says so.

    Raises:
        RuntimeSetupError: the device cannot compute in it; names a precision that works.
    """
    if asked == "auto":
        return "bf16" if has_bf16(kind) else "fp32"
    if asked == "fp16" and kind == "cpu":
        raise RuntimeSetupError(
            "runtime.precision is fp16, which needs a GPU; on cpu set auto, bf16 or fp32"
        )
    if asked == "bf16" and not has_bf16(kind):
        if kind == "cuda":
            raise RuntimeSetupError(
                f"runtime.precision is bf16, which {torch.cuda.get_device_name()} does not have; "
                "set auto, fp16 or fp32"
            )
        log.warning(
            "runtime.precision is bf16, which this %s only emulates, many times slower than fp32; "
            "set runtime.precision=auto", kind.upper(),
        )  # fmt: skip
    return asked


def has_bf16(kind: str) -> bool:
    """Tell whether a device (cpu, cuda or mps) multiplies bf16 matrices in hardware."""
    if kind == "cuda":
        # False, because torch counts emulated bf16 as well, which gains nothing.
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(False)
    if kind == "cpu":
        found = torch.cpu.get_capabilities()
        return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def announced_world() -> int:
    """Return the number of processes that the launcher's environment announces; 1 without one."""
    return max(_first_integer(WORLD_SIZE_NAMES, 1), 1)


def announced_place() -> tuple[int, int]:
    """Return the rank and the number of processes that the environment announces; 0, 1 without."""
    return max(_first_integer(RANK_NAMES, 0), 0), announced_world()


def _first_integer(names: tuple[str, ...], default: int) -> int:
    found = [os.environ[name] for name in names if os.environ.get(name)]
    return int(found[0]) if found and found[0].lstrip("-").isdigit() else default


def _check_launcher(announced: int, kind: str) -> None:
    if announced > 1 and _first_integer(RANK_NAMES, -1) < 0:
        # Without a rank every process would wait for the others as rank 0, for hours.
        raise RuntimeSetupError(
            f"WORLD_SIZE is {announced} but RANK is not set; start with torchrun or accelerate "
            "launch, or unset WORLD_SIZE"
        )
    if announced > 1 and kind == "mps":
        raise RuntimeSetupError(
            f"{announced} processes on mps, which has no collectives; set runtime.device=cpu"
        )
    local_rank = _first_integer(("LOCAL_RANK",), 0)
    if kind == "cuda" and local_rank >= torch.cuda.device_count():
        raise RuntimeSetupError(
            f"local rank {local_rank} has no GPU of its own: {torch.cuda.device_count()} visible; "
            "start at most one process per GPU"
        )


def _check_world(world: int, announced: int, asked: int | None) -> None:
    if world != announced:
        # Accelerate falls back to one process without a word in several set-ups.
        raise RuntimeSetupError(
            f"the launcher announced {announced} processes, but {world} joined: each would train "
            "alone; start with torchrun, or accelerate launch --multi_gpu (also for CPU)"
        )
    if asked is not None and world != asked:
        raise RuntimeSetupError(
            f"runtime.processes is {asked}, but {world} started; start with "
            f"torchrun --nproc-per-node {asked}, or set runtime.processes={world}"
        )


def _check_alike(precision: str) -> None:
    every = gather_object([precision])
    if len(set(every)) > 1:
        other = next(rank for rank, one in enumerate(every) if one != every[0])
        raise RuntimeSetupError(
            f"runtime.precision is auto, which is {every[0]} on rank 0 and {every[other]} on rank "
            f"{other}; set runtime.precision=fp32, or start on machines of one kind"
        )


def _prefer_deterministic_kernels(wanted: bool) -> None:
    if not wanted:
        # A run of the same process may have asked for them.
        torch.use_deterministic_algorithms(False)
        return
    # cuBLAS reads it when its first handle is made, which must come after this.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Warn and go on: a few kernels have no deterministic form, and are better than no run.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    # Filling fresh memory only serves to find reads of it, and costs a pass over every tensor.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_everything(seed: int, stream: int = 0) -> None:
    """Seed Python's, NumPy's and torch's generators on every device.

    Args:
        seed: the run's seed, >= 0.
        stream: makes independent sequences of one seed; ranks draw their dropout masks from
            `stream=rank`, and build their models from stream 0.
    """
    # Words of a hash: neighbouring seeds, or seed and rank, give unrelated sequences.
    words = np.random.SeedSequence([seed, stream]).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.manual_seed(int(words[2]))


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """Return the largest memory used so far, in bytes.

    Args:
        device: a CUDA device for the peak of torch's allocator there; else this process's
            resident memory.
    """
    if device is not None and device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return artifacts.peak_memory_bytes()
