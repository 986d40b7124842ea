"""Settings of where and how the program runs: devices, precision, processes, engine.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plant_dist.config.settings import Section, setting
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class RuntimeConfig(Section):
    """Devices, precision and processes."""

    device: str = setting(
        "auto", "Where to compute.", choices=("auto", "cpu", "cuda", "mps"), inert=True
    )
    # Not inert: rounding changes results, so artifacts record it.
    precision: str = setting(
        "fp32",
        "Arithmetic of the forward pass; auto: bf16 where hardware has it, else fp32.",
        choices=("fp32", "bf16", "fp16", "auto"),
    )
    # Inert: losses are the same to rounding, and each goes on from the others' checkpoints.
    engine: str = setting(
        "ddp",
        "How `train` is spread over processes: ddp keeps everything on each; zero1 shares out the "
        "optimizer's state, zero2 gradients too, zero3 weights too (DeepSpeed); fsdp2 is refused.",
        choices=("ddp", "zero1", "zero2", "zero3", "fsdp2"), inert=True,
    )  # fmt: skip
    offload: str = setting(
        "none",
        "What ZeRO keeps in host memory: the optimizer's state, or (zero3) weights too.",
        choices=("none", "optimizer", "parameters"), inert=True,
    )  # fmt: skip
    deepspeed: dict[str, Any] = setting(
        {}, "Raw entries laid over the DeepSpeed settings that the engine derives.", inert=True
    )
    processes: int | None = setting(
        None, "Refuse to run with another number of processes.", minimum=1, inert=True
    )
    # A step waits for an index at most (shortlist.swap_after), and for kernels that are compiled.
    hang_seconds: float | None = setting(
        1800.0, "End a training of several processes that makes no step for so long; unset waits.",
        above=0.0, inert=True,
    )  # fmt: skip
    async_checkpoints: str = setting(
        "auto",
        "Write checkpoints beside training, from a copy in host memory; auto: where the copy takes "
        "at most half of what is free.",
        choices=("auto", "always", "never"), inert=True,
    )  # fmt: skip
    threads: int | None = setting(None, "CPU threads per process; torch's choice if unset.",
                                  minimum=1, inert=True)  # fmt: skip
    deterministic: bool = setting(True, "Use deterministic kernels where torch has them.")
    # A node reads every document at every epoch: from its own disk, not all from one shared one.
    local_disk: str | None = setting(
        None, "Folder on each machine's own disk to copy the prepared dataset to and read it from.",
        inert=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        zero = self.engine.startswith("zero")
        if self.offload != "none" and not zero:
            raise ConfigError(
                f"runtime.offload is {self.offload}, but runtime.engine is {self.engine}, which "
                "offloads nothing; set runtime.engine=zero2, or runtime.offload=none"
            )
        if self.offload == "parameters" and self.engine != "zero3":
            raise ConfigError(
                f"runtime.offload is parameters, but runtime.engine is {self.engine}, which keeps "
                "all weights on every process; set runtime.engine=zero3, or "
                "runtime.offload=optimizer"
            )
        if self.deepspeed and not zero:
            raise ConfigError(
                f"runtime.deepspeed sets {', '.join(self.deepspeed)}, but runtime.engine is "
                f"{self.engine}, which is not DeepSpeed; set runtime.engine=zero2, or remove them"
            )
        if zero and self.precision == "fp16":
            raise ConfigError(
                f"runtime.precision is fp16, whose loss scale runtime.engine={self.engine} does "
                "not know; set runtime.precision=bf16, or runtime.engine=ddp"
            )
