"""Time and memory of the decoder's training step on shortlists, against the number of labels.

A step fetches the rows of K labels for each document, scores them, and moves the touched rows
(row-wise Adagrad). Shortlists are drawn evenly from all labels, which is the worst case: the more
labels, the fewer does one document share with another, and each is a row far from the others.
Cases run in processes of their own, one case after another, so that ratios are of one run:

* replicated rows at the smallest and the largest number of labels, one process;
* sharded rows (TorchRec) on one process, on two, and two independent processes, at the same time,
  with half the table each.

Memory stands beside what `plant-dist plan` says of such steps.

    python benchmarks/rows.py                 # 10,000 and 1,000,000 labels: 24 GB, some minutes
    python benchmarks/rows.py --labels 2000 50000 --steps 8 --quick     # a look, writes nothing
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from decoder import memory_mib, zipf
from machine import described_machine, load
from torch import Tensor

from plant_dist.config.load import build_section
from plant_dist.config.schema import Config, ModelConfig
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.sharded import ShardedRows
from plant_dist.labels.sparse import SparseRows
from plant_dist.labels.updates import RowAdagrad
from plant_dist.models.decoder import LabelDecoder
from plant_dist.models.fields import label_fields
from plant_dist.models.ranker import LexicalScorer
from plant_dist.models.shapes import EncoderShape
from plant_dist.stages.estimate import LABEL_TABLES, Share
from plant_dist.stages.forecast import forecast
from plant_dist.stages.traffic import Machine

DOCUMENTS, TOKENS, CONSIDERED, WIDTH, RANKER_WIDTH, VOCABULARY = 16, 128, 512, 256, 256, 30522
RESULTS = Path(__file__).parent / "results"
CONFIG = ModelConfig(branches=("learned", "planted"), dropout=0.0)
FIELDS = label_fields(CONFIG, WIDTH, RANKER_WIDTH)


class Steps:
    """Training steps of one table: documents and shortlists drawn anew for each."""

    def __init__(self, labels: int, rows: SparseRows, seed: int) -> None:
        self.labels, self.rows = labels, rows
        # The ranker's token side is shared by all labels, and no part of what is measured.
        scorer = LexicalScorer(VOCABULARY, RANKER_WIDTH).requires_grad_(False)
        self.decoder = LabelDecoder(CONFIG, rows, scorer)
        self.optimizer = torch.optim.SGD([{"params": list(rows.fields.values()), "lr": 0.01}])
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self) -> tuple[Tensor, ...]:
        """Hidden states, token ids, kept tokens, label ids and targets."""
        draw = self.generator
        return (
            torch.randn(DOCUMENTS, TOKENS, WIDTH, generator=draw),
            zipf(DOCUMENTS * TOKENS).view(DOCUMENTS, TOKENS),
            torch.ones(DOCUMENTS, TOKENS, dtype=torch.bool),
            torch.randint(0, self.labels, (DOCUMENTS, CONSIDERED), generator=draw),
            (torch.rand(DOCUMENTS, CONSIDERED, generator=draw) < 0.02).float(),
        )

    def step(self) -> tuple[float, float]:
        """Make one step; return its seconds and the processor's, without drawing the batch."""
        hidden, tokens, keep, labels, gold = self.batch()
        began, computed = time.perf_counter(), time.process_time()
        self.rows.begin(self.optimizer)
        logits = self.decoder(hidden, tokens, keep, labels)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, gold).backward()
        self.rows.step()
        return time.perf_counter() - began, time.process_time() - computed


def measure(engine: str, labels: int, steps: int, threads: int) -> dict[str, Any]:
    """Seconds of each step, and memory before the table, with it, and at the peak."""
    torch.set_num_threads(threads)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        dist.init_process_group("gloo")
    make = {"replicated": ReplicatedRows, "sharded": ShardedRows}[engine]
    # A small table first: libraries are loaded and buffers made before the memory is read.
    small = Steps(1000, make(1000, FIELDS, RowAdagrad()), rank)
    small.step()
    del small
    before = memory_mib("VmRSS")
    run = Steps(labels, make(labels, FIELDS, RowAdagrad()), rank)
    for _ in range(2):
        run.step()
    seconds = [run.step() for _ in range(steps)]
    peaks = {"before_mib": before, "peak_mib": memory_mib("VmHWM")}
    every: list[Any] = [None] * world
    mine = {"seconds": [wall for wall, _ in seconds], "cpu_seconds": [cpu for _, cpu in seconds],
            **peaks}  # fmt: skip
    if world > 1:
        dist.all_gather_object(every, mine)
        dist.barrier()
        dist.destroy_process_group()
    return {"ranks": every if world > 1 else [mine], "rank": rank}


def started(engine: str, labels: int, options: argparse.Namespace, ranks: int, threads: int) -> Any:
    """Start a case in processes of its own."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    command = [
        sys.executable, *(launcher if ranks > 1 else []), str(Path(__file__).resolve()),
        "--worker", engine, "--labels", str(labels), "--steps", str(options.steps),
        "--threads", str(threads),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def ended(process: Any, what: str) -> list[dict[str, Any]]:
    """What each rank of a case measured."""
    out, _ = process.communicate()
    lines = [line for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise SystemExit(f"{what} ended with {process.returncode}; run it by itself with --worker")
    ranks: list[dict[str, Any]] = json.loads(lines[0])["ranks"]
    return ranks


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Measure every case, one after another."""
    few, many = min(options.labels), max(options.labels)
    found: dict[str, Any] = {}
    for name, engine, labels, ranks in (
        ("replicated, few", "replicated", few, 1),
        ("replicated, many", "replicated", many, 1),
        ("sharded, 1 process", "sharded", many, 1),
        ("sharded, 2 processes", "sharded", many, 2),
    ):
        # One thread each, so that one process and two compute alike.
        found[name] = ended(started(engine, labels, options, ranks, 1), name)
        print(f"{name}: {1000 * median(found[name]):.0f} ms", file=sys.stderr)
    halves = [started("sharded", many // 2, options, 1, 1) for _ in range(2)]
    found["2 independent halves"] = [ended(one, "half a table")[0] for one in halves]
    return found


def median(ranks: list[dict[str, Any]], clock: str = "seconds") -> float:
    """Median seconds of a step, on the slowest rank."""
    return float(max(statistics.median(rank[clock]) for rank in ranks))


def peak(ranks: list[dict[str, Any]]) -> float:
    """Peak memory of the fullest rank, MiB."""
    return max(float(rank["peak_mib"]) for rank in ranks)


def table_mib(ranks: list[dict[str, Any]]) -> float:
    """Memory of the fullest rank above what it had before its table, MiB."""
    return max(float(rank["peak_mib"]) - float(rank["before_mib"]) for rank in ranks)


def planned_bytes(engine: str, labels: int, ranks: int = 1) -> float:
    """Bytes that `plant-dist plan` says of a rank's rows and of such steps."""
    asked = build_section(Config, {
        "train": {"labels": "shortlist"}, "labels": {"engine": engine},
        "model": {"branches": list(CONFIG.branches)}, "rank": {"width": RANKER_WIDTH},
        "shortlist": {"labels_per_document": CONSIDERED, "vectors": "ranker"},
    })  # fmt: skip
    # The encoder is not part of such a step.
    encoder = EncoderShape(WIDTH, VOCABULARY, parameters=0, trained=0, blocks=1, kept=0)
    share = Share(DOCUMENTS, DOCUMENTS * TOKENS)
    said = forecast(asked, encoder, labels, share, Machine(ranks, memory=1e12))
    tables = next(part for part in said.device if part.name == LABEL_TABLES)
    return tables.total + sum(said.step.values())


def planned_of(name: str, labels: list[int]) -> float:
    """The plan of a case of `run_all`, MiB."""
    count = min(labels) if name.endswith("few") else max(labels)
    if name == "2 independent halves":
        return planned_bytes("sharded", count // 2) / 2**20
    ranks = 2 if name == "sharded, 2 processes" else 1
    return planned_bytes(name.split(",")[0], count, ranks) / 2**20


def verdicts(found: dict[str, Any], labels: list[int]) -> list[tuple[str, float, float]]:
    """(what, ratio measured, bound) of every promise."""
    few, many = found["replicated, few"], found["replicated, many"]
    one, two = found["sharded, 1 process"], found["sharded, 2 processes"]
    rows_mib = max(labels) * sum(FIELDS.values()) * 4 / 2**20
    halves = found["2 independent halves"]
    many_labels = ("replicated, many", "sharded, 1 process", "sharded, 2 processes")
    return [
        *both("step, many labels / few", many, few, 1.25),
        ("(peak, many labels - peak, few) / bytes of the rows", (peak(many) - peak(few)) / rows_mib,
         1.3),
        ("memory of a rank's table and step, 2 processes / 1", table_mib(two) / table_mib(one),
         0.6),
        ("whole peak of a rank, 2 processes / 1", peak(two) / peak(one), 0.6),
        *both("step, 2 processes / 2 independent halves", two, halves, 1.6),
        ("plan's memory, farthest from what was measured of many labels",
         max(abs(1 - planned_of(name, labels) / table_mib(found[name])) for name in many_labels),
         0.15),
    ]  # fmt: skip


def both(
    what: str, one: list[dict[str, Any]], other: list[dict[str, Any]], most: float
) -> list[tuple[str, float, float]]:
    """The ratio of two cases by either clock."""
    return [
        (f"{what}, {clock}", median(one, key) / median(other, key), most)
        for clock, key in (("processor", "cpu_seconds"), ("wall clock", "seconds"))
    ]


def markdown(found: dict[str, Any], about: dict[str, Any], labels: list[int]) -> str:
    """A table of the cases, and one of the promises."""
    lines = [
        f"`{about['command']}` on {about['machine']}, torch {about['torch']}, one thread a process;"
        f" B = {DOCUMENTS}, T = {TOKENS}, K = {CONSIDERED}, D = R = {WIDTH}, {sum(FIELDS.values())}"
        f" numbers a label, float32, row-wise Adagrad; {min(labels):,} and {max(labels):,} labels.",
        "Where other programs run beside, the processor's time says more than the clock.",
        "", "| case | ms a step, processor (median; range) | wall clock | peak, MiB | above the "
        "start, MiB | plan, MiB |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, ranks in found.items():
        every = [second for rank in ranks for second in rank["cpu_seconds"]]
        lines.append(
            f"| {name} | {1000 * median(ranks, 'cpu_seconds'):.0f} ({1000 * min(every):.0f}–"
            f"{1000 * max(every):.0f}) | {1000 * median(ranks):.0f} | {peak(ranks):,.0f} | "
            f"{table_mib(ranks):,.0f} | {planned_of(name, labels):,.0f} |"
        )
    lines += ["", "| ratio | measured | at most |", "|---|---|---|"]
    lines += [f"| {what} | {ratio:.2f} | {most} |" for what, ratio, most in verdicts(found, labels)]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--steps", type=int, default=20, help="counted steps of each case")
    parser.add_argument("--quick", action="store_true", help="print, write no results")
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=("replicated", "sharded"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.worker:
        found = measure(options.worker, options.labels[0], options.steps, options.threads)
        if found["rank"] == 0:
            print(json.dumps(found))
        return
    about = {
        "command": "python benchmarks/rows.py --labels "
        f"{' '.join(map(str, options.labels))} --steps {options.steps}",
        "machine": f"{described_machine()}, {load()} at the start",
        "torch": torch.__version__,
    }
    found = run_all(options)
    text = markdown(found, about, options.labels)
    print(text)
    if not options.quick:
        (RESULTS / "rows.json").write_text(json.dumps({**about, "cases": found}, indent=1) + "\n")
        (RESULTS / "rows.md").write_text("# Label rows: step time and memory\n\n" + text)


if __name__ == "__main__":
    main()
