"""Search of a large label space: recall of the exact best 10, time, against brute force.

    python benchmarks/shortlist.py --labels 1000000 --width 256

Label vectors are made: unit vectors in clusters of clusters, as embeddings of a hierarchy are, and
queries lie between labels. Brute force is the best of one product with all labels and FAISS's own
exact index, for the same queries in the same process. Prints a table and writes
benchmarks/results/shortlist.json and .png.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import torch
from machine import described_machine, load

from plant_dist.shortlist.index import (
    About,
    Float32,
    LabelIndex,
    build_shard,
    choose_factory,
    exact_search,
    write_about,
    write_shard,
)
from plant_dist.shortlist.plots import save_curve
from plant_dist.shortlist.quality import TOP, cheapest, tuning_curve

RESULTS = Path(__file__).parent / "results"
RETRIEVED = 100
TARGET = 0.95
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


def brute_force_ms(vectors: Float32, queries: Float32) -> dict[str, float]:
    """Milliseconds a query of exact search, all queries at once, the best of three."""
    flat = faiss.IndexFlatIP(vectors.shape[1])
    flat.add(vectors)
    labels, asked = torch.from_numpy(vectors), torch.from_numpy(queries)

    def product() -> None:
        # In blocks of labels: queries x labels scores would be gigabytes.
        best = [(asked @ block.T).topk(min(RETRIEVED, len(block))) for block in labels.split(65536)]
        torch.cat([one.values for one in best], dim=1).topk(RETRIEVED)

    ways = {"product": product, "faiss_flat": lambda: flat.search(queries, RETRIEVED)}
    found = {}
    for name, run in ways.items():
        seconds = []
        for _ in range(3):
            began = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - began)
        found[name] = 1e3 * min(seconds) / len(queries)
    return found


def main() -> None:
    """Build, tune, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--labels", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--index", default="auto")
    parser.add_argument("--memory-mb", type=int, default=4096)
    options = parser.parse_args()
    vectors = made_vectors(options.labels, options.width, seed=0)
    random = np.random.default_rng(1)
    # A document carries several labels of unlike chapters: its vector lies between them, which is
    # harder than near one.
    carried = random.choice(options.labels, (options.queries, LABELS_EACH), replace=False)
    between = vectors[carried].mean(axis=1)
    noise = random.standard_normal(between.shape, dtype=np.float32)
    queries = between + noise * np.float32(0.3 / options.width**0.5)

    def source(start: int, stop: int) -> Float32:
        return vectors[start:stop]

    factory = choose_factory(options.index, options.labels, options.width, options.memory_mb)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        began = time.perf_counter()
        index = build_shard(source, 0, options.labels, options.width, factory, seed=0)
        seconds = time.perf_counter() - began
        shard = write_shard(folder, index, 0, options.labels, factory)
        del index
        about = About("made", options.labels, options.width, "learned", 0, seconds, (shard,))
        write_about(folder, about)
        opened = LabelIndex.load(folder)
        _, exact = exact_search(source, 0, options.labels, queries, TOP)
        points = tuning_curve(opened, queries, exact, RETRIEVED)
    brute = brute_force_ms(vectors, queries)
    chosen, fastest = cheapest(points, TARGET), min(brute.values())
    print(f"{options.labels:,} x {options.width}, {factory}: built in {seconds:.0f} s, "
          f"{shard.bytes / 2**20:.0f} MiB")  # fmt: skip
    print(f"brute force, ms a query: {', '.join(f'{n} {ms:.3f}' for n, ms in brute.items())}")
    print(f"{'setting':<14}{'exact 10 in ' + str(RETRIEVED):>16}{'ms/query':>10}{'of brute':>10}")
    for point in points:
        mark = "  <-" if point is chosen else ""
        print(f"{point.search:<14}{point.recall:>16.4f}{point.milliseconds:>10.4f}"
              f"{point.milliseconds / fastest:>10.4f}{mark}")  # fmt: skip
    if chosen is None:
        print(f"no setting reaches {TARGET}")
    RESULTS.mkdir(exist_ok=True)
    content = {
        "machine": described_machine(), "load": load(),
        "labels": options.labels, "width": options.width,
        "queries": options.queries, "factory": factory, "build_seconds": seconds,
        "bytes": shard.bytes, "brute_force_ms": brute, "target": TARGET,
        "chosen": chosen and vars(chosen), "points": [vars(point) for point in points],
    }  # fmt: skip
    (RESULTS / "shortlist.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_curve(points, chosen, TARGET, RESULTS / "shortlist.png")


if __name__ == "__main__":
    main()
