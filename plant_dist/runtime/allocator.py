"""How the C library deals with memory that a step has freed and the next will ask for again.

glibc hands large arrays back to the kernel as soon as they are freed, and the kernel clears every
page of the next ones: a seventh of an encoder's forward pass on a CPU (docs/findings.md).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# Of <malloc.h>: how much unused memory at the end of the heap is given back, and from which size on
# an array has pages of its own, which are given back at once.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, OWN_PAGES_BYTES = 2**31 - 1, 2**30
# By which users choose for themselves.
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Let this process keep what it frees, up to 2 GiB, and arrays of less than 1 GiB in its heap.

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
