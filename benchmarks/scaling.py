"""How much two processes train in the time of one, under each engine: tokens a second by core.

A classifier with an encoder of noise trains on made-up batches, as many documents a process on one
process as on two (weak scaling), one thread each. Processes fork from one that has imported what
they need; engines and numbers of processes alternate, so that what else the machine does falls on
all alike. Efficiency is the speed of two over twice the speed of one *of the same engine*, by the
clock, which wants two cores free of other work, and by the processor's time of a rank, which counts
computing and exchanging but no waiting, and holds on a busy machine too. Beside them stands what a
step of two costs in processor time against DDP's.

    python benchmarks/scaling.py                      # two free cores, 3 minutes
    python benchmarks/scaling.py --quick              # a look, writes nothing
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from machine import described_machine, load
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from plant_dist.config.schema import RuntimeConfig
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.runtime.collectives import barrier, end_run
from plant_dist.runtime.context import RunContext, peak_memory_bytes, start_run
from plant_dist.runtime.engines import build_engine
from plant_dist.train.optim import ParameterGroup, build_optimizer

ENGINES = ("ddp", "zero1", "zero2", "zero3")
DOCUMENTS, TOKENS, WIDTH, LAYERS, LABELS, VOCABULARY = 4, 64, 256, 3, 500, 4000
RESULTS = Path(__file__).parent / "results"


def classifier() -> PlantForMultiLabelClassification:
    torch.manual_seed(0)
    return PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": ["learned"], "dropout": 0.0}, label_count=LABELS,
            encoder={"model_type": "bert", "vocab_size": VOCABULARY, "hidden_size": WIDTH,
                     "num_hidden_layers": LAYERS, "num_attention_heads": 4,
                     "intermediate_size": 4 * WIDTH},
        )
    )  # fmt: skip


def measured(context: RunContext, engine_name: str, steps: int) -> dict[str, float]:
    """Seconds of a step and memory of this rank."""
    model = classifier()
    rows = set(model.labels.parameters())
    groups = [
        ParameterGroup("rows", [p for p in model.parameters() if p in rows], 1e-3, rowwise=True),
        ParameterGroup("rest", [p for p in model.parameters() if p not in rows], 1e-4),
    ]
    optimizer = build_optimizer(groups, (0.9, 0.999), context.device)
    engine = build_engine(context, RuntimeConfig(engine=engine_name), 1.0, False)
    wrapped = engine.prepare(model, optimizer)
    wrapped.train()
    generator = torch.Generator().manual_seed(context.rank)
    seconds, worked = [], []
    for _ in range(steps):
        ids: Tensor = torch.randint(5, VOCABULARY, (DOCUMENTS, TOKENS), generator=generator)
        gold = (torch.rand(DOCUMENTS, LABELS, generator=generator) < 0.01).float()
        barrier(context)
        began, before = time.perf_counter(), time.process_time()
        with engine.accumulate(wrapped, last=True), engine.autocast():
            logits = wrapped(ids).logits
            engine.backward(binary_cross_entropy_with_logits(logits, gold))
        engine.update([list(group.parameters) for group in groups], 1.0)
        seconds.append(time.perf_counter() - began)
        # Of all threads, those that exchange included.
        worked.append(time.process_time() - before)
    # The first ones allocate, and record what ZeRO-3 fetches when.
    return {
        "seconds": statistics.median(seconds[3:]), "worked": statistics.median(worked[3:]),
        "mib": peak_memory_bytes() / 2**20,
    }  # fmt: skip


def run(world: int, engine: str, steps: int) -> dict[str, float]:
    """Fork the ranks, each on a core of its own; return what the slowest took."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    os.sched_setaffinity(0, {cores[rank % len(cores)]})
                    if world > 1:
                        os.environ.update(
                            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
                            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                        )  # fmt: skip
                    runtime = RuntimeConfig(device="cpu", threads=1, deterministic=False)
                    context = start_run(runtime)
                    found = measured(context, engine, steps)
                    (Path(place) / f"{rank}.json").write_text(json.dumps(found))
                    end_run(context)
                    code = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(child)
        codes = [os.waitpid(child, 0)[1] for child in children]
        assert not any(codes), f"{engine} on {world}: {codes}"
        ranks = [json.loads(path.read_text()) for path in Path(place).iterdir()]
    return {name: max(one[name] for one in ranks) for name in ranks[0]}


def spread(values: list[float]) -> list[float]:
    """Median, least, most."""
    return [statistics.median(values), min(values), max(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one short round; writes nothing")
    options = parser.parse_args()
    steps, repeats = (6, 1) if options.quick else (options.steps, options.repeats)
    busy = load()
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(repeats):
        for engine in ENGINES:
            for world in (1, 2):
                found.setdefault((engine, world), []).append(run(world, engine, steps))
    rows: list[dict[str, Any]] = []
    for engine in ENGINES:
        one, two = found[engine, 1], found[engine, 2]
        speeds = {
            world: [world * DOCUMENTS * TOKENS / each["seconds"] for each in found[engine, world]]
            for world in (1, 2)
        }
        by_clock = [b / (2 * a) for a, b in zip(speeds[1], speeds[2], strict=True)]
        by_work = [a["worked"] / b["worked"] for a, b in zip(one, two, strict=True)]
        against = [
            each["worked"] / first["worked"]
            for first, each in zip(found["ddp", 2], two, strict=True)
        ]
        rows.append({
            "engine": engine,
            "tokens_per_second_1": statistics.median(speeds[1]),
            "tokens_per_second_2": statistics.median(speeds[2]),
            "efficiency_by_clock": spread(by_clock),
            "efficiency_by_processor_time": spread(by_work),
            "processor_time_of_two_against_ddp": spread(against),
            "mib_per_rank": [max(each["mib"] for each in ranks) for ranks in (one, two)],
        })  # fmt: skip
    content: dict[str, Any] = {
        "command": f"python benchmarks/scaling.py --steps {steps} --repeats {repeats}",
        "machine": described_machine(), "load": busy,
        "cores": len(os.sched_getaffinity(0)), "threads_per_process": 1, "steps": steps,
        "repeats": repeats, "seed": 0,
        "shape": {"documents_per_process": DOCUMENTS, "tokens": TOKENS, "width": WIDTH,
                  "layers": LAYERS, "labels": LABELS, "vocabulary": VOCABULARY},
        "rows": rows,
    }  # fmt: skip
    for row in rows:
        clock, work = row["efficiency_by_clock"], row["efficiency_by_processor_time"]
        print(
            f"{row['engine']:6} {row['tokens_per_second_1']:8.0f} tokens/s on one, "
            f"{row['tokens_per_second_2']:.0f} on two; efficiency by clock {clock[0]:.2f}, by "
            f"processor time {work[0]:.2f} ({work[1]:.2f} to {work[2]:.2f})"
        )
    if not options.quick:
        path = RESULTS / "scaling.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        print(path)


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ["ACCELERATE_USE_CPU"] = "true"
    import deepspeed  # noqa: F401  (before forking)

    main()
