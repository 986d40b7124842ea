"""Search of a large label space: recall of the exact best 10, time, against brute force.

    python benchmarks/shortlist.py --labels 1000000 --width 256
    python benchmarks/shortlist.py --vectors icd10cm.npz --index IVF512,SQ8 IVF512,PQ192x4fs

Label vectors are made: unit vectors in clusters of clusters, as embeddings of a hierarchy are, and
queries lie between labels; or given, as arrays `labels` (L, D) and `queries` (B, D). Brute force is
one product with all labels, and FAISS's own exact index, for the same queries in the same process,
on one thread. Prints a table and writes benchmarks/results/shortlist.json and .png, or
shortlist-FILE.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from machine import described_machine, load

from plant_dist.shortlist.factory import choose_factory
from plant_dist.shortlist.index import (
    About,
    Float32,
    Int64,
    LabelIndex,
    build_shard,
    exact_search,
    write_about,
    write_shard,
)
from plant_dist.shortlist.plots import save_curve
from plant_dist.shortlist.quality import TOP, SearchPoint, cheapest, overlap, settings_of

RESULTS = Path(__file__).parent / "results"
RETRIEVED = 100
TARGET, ENOUGH = 0.95, 0.999
LABELS_EACH = 3


def made_vectors(labels: int, width: int, seed: int) -> Float32:
    """Unit vectors: about 30 labels a cluster, about 30 clusters a chapter."""
    random = np.random.default_rng(seed)

    def around(centres: Float32, count: int, spread: float) -> Float32:
        chosen = centres[np.sort(random.integers(0, len(centres), count))]
        noise = random.standard_normal((count, width), dtype=np.float32)
        return chosen + noise * np.float32(spread / width**0.5)

    chapters = random.standard_normal((max(1, labels // 900), width), dtype=np.float32)
    chapters /= np.linalg.norm(chapters, axis=1, keepdims=True)
    vectors = around(around(chapters, max(1, labels // 30), 0.8), labels, 0.6)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def made_queries(vectors: Float32, count: int) -> Float32:
    """Vectors of documents: they carry several labels of unlike chapters, hence lie between them,
    which is harder than near one."""
    random = np.random.default_rng(1)
    carried = random.choice(len(vectors), (count, LABELS_EACH), replace=False)
    between = vectors[carried].mean(axis=1)
    noise = random.standard_normal(between.shape, dtype=np.float32)
    queries: Float32 = between + noise * np.float32(0.3 / vectors.shape[1] ** 0.5)
    return queries


def brute_force(vectors: Float32, queries: Float32) -> dict[str, float]:
    """Milliseconds a query of exact search, all queries at once."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    labels, asked = torch.from_numpy(vectors), torch.from_numpy(queries)

    def product() -> None:
        # In blocks of labels: queries x labels scores would be gigabytes.
        best = [(asked @ block.T).topk(min(RETRIEVED, len(block))) for block in labels.split(65536)]
        torch.cat([one.values for one in best], dim=1).topk(RETRIEVED)

    ways = {"product": product, "faiss_flat": lambda: flat.search(queries, RETRIEVED)}
    return {name: 1e3 * processor_seconds(run) / len(queries) for name, run in ways.items()}


def processor_seconds(run: Callable[[], object], times: int = 3) -> float:
    """Return the best of several times, of the processor: other programs may run beside.

    On one thread that is how long it takes on a quiet machine.
    """
    found = []
    for _ in range(times):
        began = time.process_time()
        run()
        found.append(time.process_time() - began)
    return min(found)


def measured(
    factory: str, vectors: Float32, queries: Float32, exact: Int64, folder: Path
) -> dict[str, Any]:
    """Build an index, open it from its file, and measure every search setting."""
    labels, width = vectors.shape

    def source(start: int, stop: int) -> Float32:
        return vectors[start:stop]

    began = time.process_time()
    index = build_shard(source, 0, labels, width, factory, seed=0)
    seconds = time.process_time() - began
    shard = write_shard(folder, index, 0, labels, factory)
    del index
    write_about(folder, About("made", labels, width, "learned", 0, seconds, (shard,)))
    opened = LabelIndex.load(folder)
    points = []
    for search in settings_of(opened):
        opened.set_search(search)
        _, ids = opened.search(queries, RETRIEVED)
        spent = processor_seconds(lambda: opened.search(queries, RETRIEVED))
        points.append(SearchPoint(search, overlap(ids, exact), 1e3 * spent / len(queries)))
        # What comes after is slower and no better.
        if points[-1].recall >= ENOUGH:
            break
    chosen = cheapest(points, TARGET)
    return {
        "factory": factory, "build_seconds": seconds, "bytes": shard.bytes,
        "chosen": chosen and vars(chosen), "points": [vars(point) for point in points],
    }  # fmt: skip


def main() -> None:
    """Build, tune, compare, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--index", nargs="+", default=["auto"], help="FAISS factory strings")
    parser.add_argument("--memory-mb", type=int, default=4096)
    parser.add_argument("--vectors", type=Path, metavar="NPZ", help="instead of made ones")
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    name = "shortlist" if options.vectors is None else f"shortlist-{options.vectors.stem}"
    if options.vectors is None:
        vectors = made_vectors(options.labels, options.width, seed=0)
        queries = made_queries(vectors, options.queries)
    else:
        given = np.load(options.vectors)
        vectors, queries = given["labels"], given["queries"][: options.queries]
    labels, width = vectors.shape
    brute = brute_force(vectors, queries)
    fastest = min(brute.values())
    print(f"{labels:,} x {width}; brute force, ms a query of one thread: "
          f"{', '.join(f'{n} {ms:.3f}' for n, ms in brute.items())}", flush=True)  # fmt: skip
    _, exact = exact_search(lambda low, high: vectors[low:high], 0, labels, queries, TOP)
    cases = []
    for wanted in options.index:
        factory = choose_factory(wanted, labels, width, options.memory_mb)
        with tempfile.TemporaryDirectory() as folder:
            case = measured(factory, vectors, queries, exact, Path(folder))
        cases.append(case)
        print(f"\n{factory}: built in {case['build_seconds']:.0f} s, "
              f"{case['bytes'] / 2**20:.0f} MiB")  # fmt: skip
        print(f"{'setting':<14}{'exact 10 in ' + str(RETRIEVED):>16}{'ms/query':>10}"
              f"{'1 of product':>14}{'1 of flat':>11}")  # fmt: skip
        for point in case["points"]:
            mark = "  <-" if point == case["chosen"] else ""
            ratios = [brute[way] / point["milliseconds"] for way in ("product", "faiss_flat")]
            print(f"{point['search']:<14}{point['recall']:>16.4f}{point['milliseconds']:>10.4f}"
                  f"{ratios[0]:>14.0f}{ratios[1]:>11.0f}{mark}", flush=True)  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    content = {
        "machine": described_machine(), "load": load(), "threads": 1, "seed": 0,
        "labels": labels, "width": width, "queries": len(queries),
        "brute_force_ms": brute, "fastest_brute_force_ms": fastest, "target": TARGET,
        "indices": cases,
    }  # fmt: skip
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    best = min((one for one in cases if one["chosen"]), default=cases[0],
               key=lambda one: one["chosen"]["milliseconds"])  # fmt: skip
    points = [SearchPoint(**point) for point in best["points"]]
    save_curve(points, cheapest(points, TARGET), TARGET, RESULTS / f"{name}.png")


if __name__ == "__main__":
    main()
