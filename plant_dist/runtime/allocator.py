"""How the C library deals with memory that a step has freed and the next will ask for again.

glibc hands large arrays back to the kernel as soon as they are freed, and the kernel clears every
page of the next ones: an eighth of an encoder's forward pass on a CPU (docs/findings.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from contextlib import suppress

# Of <malloc.h>: how much unused memory at the end of the heap is given back, and from which size on
# an array has pages of its own, which are given back at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, OWN_PAGES_BYTES = 2**31 - 1, 2**26
# By which users choose for themselves.
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep what it frees, up to 2 GiB, of arrays of less than 64 MiB.

    Larger ones would leave holes that none fits into: of 100 MB each, with small ones between, the
    heap grew to seven times their size.

    Does nothing where the environment says how memory is to be had, or there is no glibc.

    Returns: whether it was done.
    """
    if any(name in environment for name in CHOSEN):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    # No such function (macOS, musl), or no library that stands for the process (Windows).
    except (AttributeError, OSError, TypeError):
        return False
    return all([mallopt(M_TRIM_THRESHOLD, KEPT_BYTES), mallopt(M_MMAP_THRESHOLD, OWN_PAGES_BYTES)])


def give_back() -> None:
    """Return what is free in the heap to the kernel: after work that comes but once."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
