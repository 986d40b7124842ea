"""How training grows with the number of labels: step time, memory, search time, recall.

For each number of labels, two runs in processes of their own:

* the decoder's step alone (as benchmarks/rows.py): 512 labels a document of K drawn evenly, 256
  wide, one process, row-wise Adagrad; its memory beside what `plant-dist plan` says;
* a made corpus (benchmarks/generated.py) from raw text to report: gold labels among the 512
  retrieved for test documents, milliseconds of search, memory of the training beside the plan's.

    python benchmarks/label_scaling.py --folder runs/scaling        # 10 k, 100 k and 1 M labels
    python benchmarks/label_scaling.py --folder F --labels 10000 3000000    # 3 M: 15 GB, 25 min
    python benchmarks/label_scaling.py --folder F --labels 2000 --documents 500 --quick

Stages that are up to date in the folder are not run again, so that it can be interrupted. Seconds
are the processor's, so that a machine that does other things beside gives nearly the same; a step
waits for nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import Sizes, write_corpus
from machine import described_machine, load
from rows import (
    CONSIDERED,
    DOCUMENTS,
    FIELDS,
    TOKENS,
    WIDTH,
    ended,
    peak,
    planned_bytes,
    started,
)

from plant_dist.artifacts import read_manifest
from plant_dist.config import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.drawing import COLOURS, drawn
from plant_dist.metrics.bands import band_labels
from plant_dist.models.shapes import encoder_shape
from plant_dist.runtime.context import RunContext
from plant_dist.shortlist.quality import found_gold
from plant_dist.stages.estimate import Share
from plant_dist.stages.forecast import Forecast, forecast
from plant_dist.stages.saved import SavedClassifier
from plant_dist.stages.traffic import Machine

RESULTS = Path(__file__).parent / "results"
STAGES = {"dataset": "prepare", "gains": "mig", "ranker": "rank", "classifier": "train",
          "report": "evaluate"}  # fmt: skip
STEP_BOUND, MEMORY_BOUND, PLAN_BOUND = 1.25, 1.3, 0.15
BOUND_UP_TO = 1_000_000  # labels for which the step is promised; beyond, it is shown
MIB = 2**20


def decoder_step(labels: int, steps: int) -> dict[str, Any]:
    """Time and memory of the decoder's step, and the memory that the plan says."""
    case = started("replicated", labels, argparse.Namespace(steps=steps), ranks=1, threads=1)
    ranks = ended(case, f"{labels:,} labels")
    (rank,) = ranks
    planned = planned_bytes("replicated", labels)
    return {
        "step_ms": 1e3 * float(np.median(rank["cpu_seconds"])),
        "step_ms_quartiles": [
            1e3 * float(q) for q in np.quantile(rank["cpu_seconds"], (0.25, 0.75))
        ],
        "wall_ms": 1e3 * float(np.median(rank["seconds"])),
        "peak_mib": peak(ranks),
        "above_start_mib": rank["peak_mib"] - rank["before_mib"],
        "rows_mib": labels * sum(FIELDS.values()) * 4 / MIB,
        "planned_mib": planned / MIB,
    }


def whole_run(folder: Path, labels: int, documents: int) -> dict[str, Any]:
    """Train on a made corpus, as far as that is not done, and measure its index and its memory."""
    place = folder / str(labels)
    path = place / "config.yaml"
    if not path.is_file():
        write_corpus(place, Sizes(labels, documents))
    for stage in STAGES.values():
        began = time.perf_counter()
        # Each in a process of its own, whose peak is that of the stage.
        subprocess.run(
            [sys.executable, "-m", "plant_dist", stage, "--config", str(path)], check=True
        )
        print(f"{labels:,} labels, {stage}: {time.perf_counter() - began:.0f} s", file=sys.stderr)
    run = place / "run"
    manifests = {stage: read_manifest(run / made) for made, stage in STAGES.items()}
    cost = {stage: one for stage, one in manifests.items() if one is not None}
    report = json.loads((run / "report" / "report.json").read_text(encoding="utf-8"))
    metrics = report["systems"]["PLANT"]["metrics"]
    said = planned_training(path, labels)
    return {
        "documents": documents,
        "seconds": {stage: one.seconds for stage, one in cost.items()},
        "train_peak_mib": cost["train"].peak_memory_bytes / MIB,
        "planned_mib": (said.device_bytes + said.host_bytes) / MIB,
        "planned_parts_mib": {
            **{part.name: part.total / MIB for part in said.device},
            "step": sum(said.step.values()) / MIB,
            **{name: size / MIB for name, size in said.host.items()},
        },
        **{name: metrics[name] for name in ("p@1", "p@5", "map")},
        **retrieval(run),
    }


def planned_training(path: Path, labels: int) -> Forecast:
    """What the plan says of a made corpus's training, on this machine."""
    config = load_config(path)
    longest = config.tokens.segment_tokens
    batch = config.train.documents_per_batch
    machine = Machine(1, memory=1e12)
    return forecast(
        config, encoder_shape(config.encoder), labels, Share(batch, batch * longest), machine
    )


def retrieval(run: Path) -> dict[str, Any]:
    """Gold labels of test documents among those retrieved, and the time of a search."""
    context = RunContext()
    saved = SavedClassifier.load(run / "classifier", context.device)
    dataset = PreparedDataset.load(run / "dataset")
    index, gold = saved.index, dataset.label_csr("test")
    assert index is not None
    queries = saved.vector_maker(context).documents(index.about.vectors, dataset.token_csr("test"))
    candidates = int(saved.model.config.retriever["candidates"])
    index.search(queries, candidates)
    began = time.process_time()
    _, ids = index.search(queries, candidates)
    seconds = time.process_time() - began
    found, labels = found_gold(ids, gold), np.asarray(gold.values)
    frequency = np.asarray(saved.label_space.train_frequency)
    present = np.bincount(labels, minlength=len(frequency)) > 0
    return {
        "index": f"{index.about.shards[0].factory} {index.search_settings}".strip(),
        "index_mib": sum(shard.bytes for shard in index.about.shards) / MIB,
        "vectors": index.about.vectors,
        "search_ms": 1e3 * seconds / len(queries),
        "gold_recall": float(found.mean()),
        "gold_recall_by_documents": {
            name: float(found[inside[labels]].mean())
            for name, inside in band_labels(frequency, present).items()
            if inside[labels].any()
        },
    }


def verdicts(cases: dict[int, dict[str, Any]]) -> list[tuple[str, float, str]]:
    """(what, measured, bound) of every promise."""
    few, many, found = cases[min(cases)]["decoder"], cases[max(cases)]["decoder"], []
    for labels, case in sorted(cases.items())[1:]:
        bound = f"≤ {STEP_BOUND}" if labels <= BOUND_UP_TO else "–"
        found.append((f"decoder step, {labels:,} labels / {min(cases):,}",
                      case["decoder"]["step_ms"] / few["step_ms"], bound))  # fmt: skip
    per_row = (many["peak_mib"] - few["peak_mib"]) / many["rows_mib"]
    what = "(peak, most labels - peak, fewest) / bytes of the rows"
    found.append((what, per_row, f"≤ {MEMORY_BOUND}"))
    for labels, case in cases.items():
        step, run = case["decoder"], case["run"]
        found.append((f"memory, plan / decoder's step, {labels:,} labels",
                      step["planned_mib"] / step["above_start_mib"],
                      f"1 ± {PLAN_BOUND} where rows outweigh libraries"))  # fmt: skip
        found.append((f"memory, plan / whole training, {labels:,} labels",
                      run["planned_mib"] / run["train_peak_mib"], f"1 ± {PLAN_BOUND}"))  # fmt: skip
    return found


def markdown(cases: dict[int, dict[str, Any]], about: dict[str, str]) -> str:
    """Tables of the decoder's step, of whole runs, and of the promises."""
    lines = [
        "# How training grows with the number of labels", "",
        f"`{about['command']}` on {about['machine']}, torch {about['torch']}, one thread. Decoder: "
        f"{DOCUMENTS} documents of {TOKENS} tokens, {CONSIDERED} labels each, {WIDTH} wide, "
        "row-wise Adagrad, processor time.", "",
        "| labels | step, ms (quartiles) | rows, MiB | peak, MiB | above the start | plan |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for labels, case in cases.items():
        one = case["decoder"]
        low, high = one["step_ms_quartiles"]
        lines.append(
            f"| {labels:,} | {one['step_ms']:.0f} ({low:.0f}–{high:.0f}) | {one['rows_mib']:,.0f} "
            f"| {one['peak_mib']:,.0f} | {one['above_start_mib']:,.0f} "
            f"| {one['planned_mib']:,.0f} |"
        )
    lines += [
        "", "Whole runs on made corpora, test documents:", "",
        "| labels | index | gold labels among 512 | without / with 1-5 documents | search, ms | "
        "P@1 | MAP | minutes, all stages | training peak, MiB | plan |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for labels, case in cases.items():
        one, band = case["run"], case["run"]["gold_recall_by_documents"]
        bands = " / ".join(f"{100 * band[n]:.1f} %" if n in band else "–" for n in ("0", "1-5"))
        lines.append(
            f"| {labels:,} | {one['index']} | {100 * one['gold_recall']:.1f} % | {bands} | "
            f"{one['search_ms']:.2f} | {100 * one['p@1']:.1f} | {100 * one['map']:.1f} | "
            f"{sum(one['seconds'].values()) / 60:.1f} | {one['train_peak_mib']:,.0f} | "
            f"{one['planned_mib']:,.0f} |"
        )
    lines += ["", "| ratio | measured | bound |", "|---|---|---|"]
    lines += [f"| {what} | {ratio:.2f} | {bound} |" for what, ratio, bound in verdicts(cases)]
    return "\n".join(lines) + "\n"


def plot(cases: dict[int, dict[str, Any]], path: Path) -> None:
    """Draw each measure over the number of labels, as a multiple of that at the fewest."""
    labels = sorted(cases)
    curves = {
        "decoder's step": [cases[one]["decoder"]["step_ms"] for one in labels],
        "peak memory, decoder": [cases[one]["decoder"]["peak_mib"] for one in labels],
        "peak memory, training": [cases[one]["run"]["train_peak_mib"] for one in labels],
        "search of a document": [cases[one]["run"]["search_ms"] for one in labels],
        "gold labels missed by 512": [1 - cases[one]["run"]["gold_recall"] for one in labels],
    }
    with drawn(path) as axes:
        for (name, values), colour in zip(curves.items(), COLOURS, strict=False):
            axes.plot(labels, [v / values[0] for v in values], marker="o", color=colour, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set(xlabel="labels", ylabel=f"times that at {labels[0]:,} labels",
                 title="What grows with the number of labels")  # fmt: skip
        axes.legend()


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--documents", type=int, default=Sizes.documents)
    parser.add_argument("--steps", type=int, default=20, help="counted steps of the decoder")
    parser.add_argument("--folder", type=Path, required=True, help="corpora and runs lie here")
    parser.add_argument("--quick", action="store_true", help="print, write no results")
    options = parser.parse_args()
    said = [f"--labels {' '.join(map(str, options.labels))}"]
    said += [f"--documents {options.documents}"] if options.documents != Sizes.documents else []
    about = {
        "command": f"python benchmarks/label_scaling.py {' '.join(said)} --steps {options.steps}",
        "machine": f"{described_machine()}, {load()} at the start", "torch": torch.__version__,
    }  # fmt: skip
    cases: dict[int, dict[str, Any]] = {}
    for labels in sorted(options.labels):
        cases[labels] = {"decoder": decoder_step(labels, options.steps),
                         "run": whole_run(options.folder, labels, options.documents)}  # fmt: skip
        print(json.dumps({labels: cases[labels]}), file=sys.stderr)
    text = markdown(cases, about)
    print(text)
    if not options.quick:
        RESULTS.mkdir(exist_ok=True)
        content = json.dumps({**about, "cases": cases}, indent=1)
        (RESULTS / "label_scaling.json").write_text(content + "\n", encoding="utf-8")
        (RESULTS / "label_scaling.md").write_text(text, encoding="utf-8")
        plot(cases, RESULTS / "label_scaling.png")


if __name__ == "__main__":
    main()
