"""The machine that a benchmark ran on, in one line; shared by the scripts of this folder."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from plant_dist.runtime.context import has_bf16


def processor() -> str:
    """Name of the processor, as the kernel gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def described_machine() -> str:
    """Cores that this process may use, processor, whether it computes in bf16, and Python."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    )  # fmt: skip
    bf16 = " with bf16" if has_bf16("cpu") else ""
    return f"{cores} cores, {processor()}{bf16}, Python {platform.python_version()}"


def load() -> str:
    """How busy the machine is, which a time measured now should be read with."""
    return f"load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
