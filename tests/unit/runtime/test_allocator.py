"""Freed memory is kept for the next step, unless the environment says otherwise."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from plant_dist.runtime.allocator import CHOSEN, keep_freed_memory

CODE = (
    "import resource, sys, torch\n"
    "from plant_dist.runtime.allocator import keep_freed_memory\n"
    "kept = sys.argv[1] == 'kept' and keep_freed_memory()\n"
    # The heap grows until every array finds a place that is free.
    "for _ in range(20): torch.ones(10_000_000)\n"
    "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
    "for _ in range(20): torch.ones(10_000_000)\n"
    "print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)\n"
)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_the_kernel_clears_no_page_twice() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}

    def faults(word: str) -> tuple[str, int]:
        told = subprocess.run(
            [sys.executable, "-c", CODE, word], env=environment, text=True, check=True,
            capture_output=True, timeout=300,
        ).stdout.split()  # fmt: skip
        return told[0], int(told[1])

    done, kept = faults("kept")
    _, plain = faults("plain")
    assert done == "True"
    # 20 arrays of 40 MB are 195,000 pages of 4 KiB, fewer where pages are larger.
    assert kept < plain / 10


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_what_was_kept_is_given_back_when_asked() -> None:
    code = (
        "import psutil, torch\n"
        "from plant_dist.runtime.allocator import give_back, keep_freed_memory\n"
        "keep_freed_memory(); held = psutil.Process().memory_info\n"
        "torch.ones(10_000_000); kept = held().rss; give_back(); print(kept - held().rss)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    told = subprocess.run([sys.executable, "-c", code], env=environment, text=True, check=True,
                          capture_output=True, timeout=300)  # fmt: skip
    # All but little of 40 MB.
    assert int(told.stdout) > 36e6


@pytest.mark.parametrize("name", CHOSEN)
def test_what_the_environment_chooses_stays(name: str) -> None:
    assert not keep_freed_memory({name: "1"})
