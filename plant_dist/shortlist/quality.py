"""How good an index is: gold labels found, agreement with exact search, milliseconds.

And the curve of the one against the other, from which search settings are chosen. Must not know
models or where vectors come from.

B documents, K labels retrieved, G gold labels.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plant_dist.data.csr import Csr
from plant_dist.shortlist.index import Float32, Int64, LabelIndex

TOP = 10  # agreement is measured on the exact best so many


@dataclass(frozen=True)
class SearchPoint:
    """One search setting, measured.

    Attributes:
        search: FAISS search settings.
        recall: share of the exact best `TOP` labels among those retrieved.
        milliseconds: per document.
    """

    search: str
    recall: float
    milliseconds: float


def found_gold(label_ids_BK: Int64, gold: Csr) -> NDArray[np.bool_]:
    """Return (G,) which gold labels are among the retrieved labels of their document."""
    gold_ids = np.asarray(gold.values, np.int64)
    # One above every label: a pair of document and label is then one number.
    lift = np.int64(max(label_ids_BK.max(initial=0), gold_ids.max(initial=0)) + 1)
    rows = np.arange(len(label_ids_BK))[:, None]
    listed = (label_ids_BK + rows * lift)[label_ids_BK >= 0]
    return np.asarray(np.isin(gold_ids + gold.owners() * lift, listed))


def overlap(label_ids_BK: Int64, exact_BM: Int64, top: int = TOP) -> float:
    """Return the share of the exact best `top` labels that were retrieved; 1 without any.

    Of fewer where fewer are retrieved at all.
    """
    best = exact_BM[:, : min(top, label_ids_BK.shape[1])]
    wanted = Csr(
        np.arange(len(best) + 1, dtype=np.int64) * best.shape[1],
        best.reshape(-1).astype(np.int32),
    )
    return float(found_gold(label_ids_BK, wanted).mean()) if best.size else 1.0


def measure(index: LabelIndex, queries: Float32, exact_BM: Int64, k: int) -> SearchPoint:
    """Search once for all queries together, and say how well and how fast."""
    began = time.perf_counter()
    _, ids = index.search(queries, k)
    seconds = time.perf_counter() - began
    return SearchPoint(index.search_settings, overlap(ids, exact_BM), 1e3 * seconds / len(queries))


def settings_of(index: LabelIndex) -> list[str]:
    """Return search settings worth trying, from the fastest to the most exact."""
    name = index.tunable
    if name is None:
        return [index.search_settings]
    # All lists is exact but for quantising; a graph has no such end, so it goes a decade past K.
    highest = index.lists if name == "nprobe" else 4096
    powers = [2**power for power in range(int(math.log2(highest)) + 1)]
    # Half way, too: recall rises steeply there, and the time of a search with it.
    between = [3 * step // 2 for step in powers[1:] if 3 * step // 2 < highest]
    return [f"{name}={step}" for step in sorted({*powers, *between, highest})]


def tuning_curve(
    index: LabelIndex,
    queries: Float32,
    exact_BM: Int64,
    k: int,
    target: float | None = None,
    tried: Sequence[str] | None = None,
) -> list[SearchPoint]:
    """Measure one setting after another; the index is left at the last.

    Args:
        exact_BM: (B, M ≥ TOP) the exact best labels, best first.
        target: stop at the first setting that reaches this recall; None measures all.
        tried: settings; `settings_of` if None.
    """
    # A first search reads what it touches from the disk; that would make the first setting look
    # slow, so all queries go through once before anything is timed.
    index.search(queries, k)
    points = []
    for search in settings_of(index) if tried is None else tried:
        index.set_search(search)
        points.append(measure(index, queries, exact_BM, k))
        if target is not None and points[-1].recall >= target:
            break
    return points


def cheapest(points: Sequence[SearchPoint], target: float) -> SearchPoint | None:
    """Return the fastest setting that reaches a recall; None where none does."""
    good = [point for point in points if point.recall >= target]
    return min(good, key=lambda point: point.milliseconds) if good else None
