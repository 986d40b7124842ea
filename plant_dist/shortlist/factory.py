"""Which kind of FAISS index a label space gets, and what a kind asks of FAISS.

Must not know vectors, files or searches.
"""

from __future__ import annotations

import math
from typing import Any

import faiss

from plant_dist.errors import ConfigError

FLAT = "Flat"
EXACT_LABELS = 200_000  # up to so many, exact search takes a millisecond or so
# Labels that packed codes find for each one wanted, among which finer codes choose.
REFINED_FROM = 4
_MIB = 2**20


def choose_factory(wanted: str, labels: int, width: int, memory_mb: int) -> str:
    """Return a FAISS factory string for a shard.

    Args: wanted: `auto`, or the string itself.

    Raises:
        ConfigError: FAISS cannot make it for this width; or `auto` finds none that fits.
    """
    if wanted != "auto":
        empty_index(wanted, width)
        return wanted
    budget = memory_mb * _MIB
    flat = 4 * labels * width
    if labels <= EXACT_LABELS and flat <= budget:
        return FLAT
    # About 2√n lists, a power of two: finding lists and searching inside them cost alike.
    lists = 2 ** max(0, round(math.log2(2 * math.sqrt(labels))))
    # Half a byte for two numbers of a vector are searched in half the time of SQ8; a byte a number
    # then puts what they find in order (docs/shortlists.md). A linear map pads an odd width first.
    even = width + width % 2
    packed = labels * (even // 4 + 8)
    if packed <= budget:
        pad = f"Pad{even}," if even != width else ""
        refine = ",Refine(SQ8)" if packed + labels * width <= budget else ""
        return f"{pad}IVF{lists},PQ{even // 2}x4fs{refine}"
    raise ConfigError(
        f"shortlist.memory_mb is {memory_mb}, but the smallest index of {labels:,} labels takes "
        f"{packed / _MIB:,.0f} MiB; raise it, use more processes, or name shortlist.index"
    )


def empty_index(factory: str, width: int) -> Any:
    """Make an empty FAISS index for inner products.

    Raises:
        ConfigError: FAISS cannot make it for this width.
    """
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ConfigError(
            f"shortlist.index is {factory!r}, which FAISS cannot make for vectors of {width} "
            f"numbers ({reason(error)}); name another factory string, or auto"
        ) from None


def reason(error: Exception) -> str:
    """The last of what FAISS says in an error, without its source files."""
    return str(error).split(": ", 1)[-1].split(" at /")[-1].split(": ", 1)[-1].strip()[:160]


def map_flag(factory: str) -> int:
    """How FAISS maps a file: one way for inverted lists alone, another for all other codes."""
    parts = factory.split(",")
    inverted = any(one.startswith("IVF") for one in parts)
    refined = parts[-1].startswith("Refine")
    return faiss.IO_FLAG_MMAP if inverted and not refined else faiss.IO_FLAG_MMAP_IFC
