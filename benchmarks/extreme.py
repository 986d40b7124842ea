"""A corpus of many labels: PLANT by shortlists against trees of linear models, and against itself.

Two questions, each answered in one run on one machine:

* the whole corpus: is PLANT, trained on shortlists, ahead of omikuji and NapkinXC's PLT, which are
  trained here on the same documents, with word pairs and TF-IDF? Over `--seeds`; omikuji's trees
  start at random, NapkinXC's do not and are trained once. Omikuji is the mean of three trees, as
  usual: the mean of PLANT's seeds stands beside one PLANT. PLANT fits the levels of six bands of
  labels to validation documents, which trees do not use; omikuji is also trained on these, to
  show what they are worth.
* a subset (`--pair N`): what does training on shortlists lose against training on all labels, and
  how much faster is it? The same config, but for `train.labels`.

    python benchmarks/extreme.py --config configs/debdepends.yaml --output runs/extreme --seeds 3
    python benchmarks/extreme.py --config configs/debdepends.yaml --output runs/pair --pair 10000

The encoder is frozen and its states are kept on disk (`encoder.cache`). Stages that are up to date
in the folder are not run again, so that the script can be interrupted; seconds of training are then
those of the run that made it. Writes results/extreme_NAME.md and .json, or pair_NAME.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_rows import judge, listed_by_baseline
from machine import described_machine, load

from plant_dist.artifacts import read_manifest
from plant_dist.cli import main as program
from plant_dist.config.load import load_config
from plant_dist.data.prepared import PreparedDataset
from plant_dist.stages import ALL
from plant_dist.stages.evaluate import AVERAGED, SYSTEM

RESULTS = Path(__file__).parent / "results"
METRICS = ("p@1", "p@3", "p@5", "psp@1", "psp@3", "psp@5", "ndcg@5", "r@10", "r@100")
AHEAD = ("p@1", "p@3", "p@5", "psp@5", "ndcg@5")
KEPT = ("p@1", "p@3", "p@5", "psp@5")
SHARE_KEPT, SHARE_OF_TIME = 0.97, 1 / 3
HELD_OUT = {"validation": 500, "test": 2000}  # documents of a pair's other splits
ONE, MEAN = "PLANT, shortlists", "the mean of PLANT's seeds"
TREES = ("omikuji", "napkinXC PLT")
RANDOM = "omikuji"  # whose trees start at random
MORE = "omikuji, validation documents too"
SETTINGS = ("encoder.cache=fp16", "train.optim.freeze_encoder=true", "evaluate.baselines=[]",
            "evaluate.ks=[1,3,5,10,100]")  # fmt: skip
BEFORE = ("prepare", "mig", "rank")


def run_stages(config: Path, folder: Path, stages: Sequence[str], settings: Sequence[str]) -> None:
    """Run stages into a folder: not those that are up to date or no part of such a run."""
    resolved = load_config(config, settings)
    used = {stage.name for stage in ALL if stage.belongs(resolved)}
    for stage in (one for one in stages if one in used):
        words = [word for setting in settings for word in ("--set", setting)]
        if code := program([stage, "--config", str(config), "--output", str(folder), *words]):
            raise SystemExit(code)


def reported(folder: Path, system: str = SYSTEM) -> dict[str, Any]:
    """What is kept of a finished run: metrics, bands, seconds of training, memory."""
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    found = report["systems"][system]
    manifest = read_manifest(folder / "classifier")
    assert manifest is not None
    return {
        "metrics": {name: found["metrics"].get(name) for name in METRICS},
        "bands": {band["name"]: band["metrics"] for band in found["bands"]},
        "train_seconds": manifest.seconds,
        "peak_mib": manifest.peak_memory_bytes / 2**20,
    }


def linear(config: Path, folder: Path, name: str, settings: Sequence[str],
           fitted: Sequence[str] = ("train",)) -> dict[str, Any]:  # fmt: skip
    """Train a tree of linear models on the run's training split (or more), judge it on test."""
    resolved = load_config(config, [*settings, f"output={folder}"])
    dataset = PreparedDataset.load(folder / "dataset")
    began, clock = time.process_time(), time.perf_counter()
    lists = listed_by_baseline(dataset, name, fitted)
    seconds = time.process_time() - began
    thresholds = judge(dataset, resolved, "validation", lists["validation"]).thresholds()
    results = judge(dataset, resolved, "test", lists["test"]).results(thresholds).as_json()
    return {
        "metrics": {name: results["metrics"].get(name) for name in METRICS},
        "bands": {band["name"]: band["metrics"] for band in results["bands"]},
        "train_seconds": time.perf_counter() - clock, "processor_seconds": seconds,
    }  # fmt: skip


def whole(config: Path, folder: Path, settings: Sequence[str], seeds: Sequence[int]
          ) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Train PLANT and the trees on the whole corpus, once a seed."""
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in seeds:
        place = folder / f"seed{seed}"
        for artifact in ("dataset", "gains"):
            # Neither hangs on the seed.
            lent = folder / f"seed{seeds[0]}" / artifact
            if lent.exists() and not (place / artifact).exists():
                shutil.copytree(lent, place / artifact)
        narrowed = [*settings, "train.labels=shortlist", f"seed={seed}"]
        others = [folder / f"seed{one}" / "classifier" for one in seeds[:-1]] * (seed == seeds[-1])
        average = f"evaluate.average_with=[{','.join(map(str, others))}]"
        run_stages(config, place, (*BEFORE, "train"), narrowed)
        run_stages(config, place, ("evaluate",), [*narrowed, average])
        found.setdefault(ONE, []).append(reported(place))
        if others:
            mean = reported(place, AVERAGED)
            mean["train_seconds"] = sum(run["train_seconds"] for run in found[ONE])
            found[MEAN] = [mean]
        rivals = {name: (name, ["train"]) for name in TREES if seed == seeds[0] or name == RANDOM}
        if seed == seeds[0]:
            rivals[MORE] = RANDOM, ["train", "validation"]
        for title, (name, fitted) in rivals.items():
            kept = place / f"{title}.json"
            if not kept.exists():
                kept.write_text(json.dumps(linear(config, place, name, narrowed, fitted)))
            found.setdefault(title, []).append(json.loads(kept.read_text()))
    return {name: over_seeds(runs) for name, runs in found.items()}


def over_seeds(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of a system's runs, and deviations of its metrics where there are several."""
    metrics = {name: [run["metrics"][name] for run in runs] for name in METRICS}
    bands = {
        band: {name: statistics.fmean(run["bands"][band][name] for run in runs)
               for name, value in metrics.items() if value is not None}
        for band, metrics in runs[0]["bands"].items()
    }  # fmt: skip
    return {
        "metrics": {name: statistics.fmean(values) for name, values in metrics.items()},
        "deviations": {
            name: statistics.stdev(values) for name, values in metrics.items() if len(runs) > 1
        },
        "bands": bands,
        "train_seconds": statistics.fmean(run["train_seconds"] for run in runs),
        "runs": list(runs),
    }


def write_subset(dataset: PreparedDataset, path: Path, sizes: Mapping[str, int], seed: int) -> None:
    """Write documents drawn from every split, as JSON lines."""
    random, ids = np.random.default_rng(seed), dataset.label_space.ids
    with path.open("w", encoding="utf-8") as stream:
        for split, wanted in sizes.items():
            labels, documents = dataset.label_csr(split), dataset.documents(split)
            chosen = random.choice(labels.size, min(wanted, labels.size), replace=False)
            for row in np.sort(chosen).tolist():
                document = documents[row]
                names = [ids[label] for label in labels.row(row).tolist()]
                line = {"id": document["id"], "split": split, "text": document["text"],
                        "labels": names}  # fmt: skip
                stream.write(json.dumps(line) + "\n")


def pair(config: Path, folder: Path, documents: int, settings: Sequence[str], seed: int
         ) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Train on a subset twice: all labels, and shortlists."""
    run_stages(config, folder / "whole", ("prepare",), settings)
    path = folder / "docs.jsonl"
    if not path.exists():
        dataset = PreparedDataset.load(folder / "whole" / "dataset")
        write_subset(dataset, path, {"train": documents, **HELD_OUT}, seed)
    narrowed = [*settings, f"data.path={path}"]
    found = {}
    for name in ("shortlist", "all"):
        place = folder / name
        for artifact in ("dataset", "gains", "ranker"):
            # Gains and ranker, if there is one, do not hang on which labels training considers.
            lent = folder / "shortlist" / artifact
            if lent.exists() and not (place / artifact).exists():
                shutil.copytree(lent, place / artifact)
        mode = [*narrowed, f"train.labels={name}"]
        run_stages(config, place, (*BEFORE, "train", "evaluate"), mode)
        found[f"PLANT, {name}"] = reported(place)
    return found


def table(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Metrics in percent, and seconds."""
    lines = [f"| system | {' | '.join(METRICS)} | training, s |", "|---" * (len(METRICS) + 2) + "|"]
    for name, one in systems.items():
        spread = one.get("deviations", {})
        cells = [f"{100 * one['metrics'][m]:.2f}" + (f" ± {100 * spread[m]:.2f}" if m in spread
                 else "") for m in METRICS]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} | {one['train_seconds']:,.0f} |")
    return lines


def verdict_whole(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """PLANT, and the mean of its seeds where there are several, less the better tree."""
    ours = [name for name in (ONE, MEAN) if name in systems]
    lines = [
        f"| less the better tree | {' | '.join(ours)} | bound |",
        "|---" * (len(ours) + 2) + "|",
    ]
    for metric in AHEAD:
        best = max(systems[name]["metrics"][metric] for name in systems if name in TREES)
        ahead = [f"{100 * (systems[name]['metrics'][metric] - best):+.2f}" for name in ours]
        lines.append(f"| {metric} | {' | '.join(ahead)} | above 0 |")
    return lines


def verdict_pair(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Shortlists over all labels."""
    short, every = systems["PLANT, shortlist"], systems["PLANT, all"]
    lines = ["| ratio, shortlists / all labels | measured | bound |", "|---|---|---|"]
    for metric in KEPT:
        ratio = short["metrics"][metric] / every["metrics"][metric]
        lines.append(f"| {metric} | {ratio:.3f} | ≥ {SHARE_KEPT} |")
    ratio = short["train_seconds"] / every["train_seconds"]
    lines.append(f"| training, s | {ratio:.3f} | ≤ {SHARE_OF_TIME:.3f} |")
    return lines


def bands(systems: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Recall of labels by their training documents."""
    names = list(next(iter(systems.values()))["bands"])
    lines = [
        f"| r@10 by training documents | {' | '.join(names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for name, one in systems.items():
        cells = [one["bands"].get(band, {}).get("r@10") for band in names]
        shown = ["–" if cell is None else f"{100 * cell:.1f}" for cell in cells]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def main() -> None:
    """Train, compare, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="run folders")
    parser.add_argument("--pair", type=int, metavar="N", help="training documents of the subset")
    parser.add_argument("--seed", type=int, default=0, help="the first")
    parser.add_argument("--seeds", type=int, default=1, help="how many, for the whole corpus")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--name", help="of the results; the config's if unset")
    options = parser.parse_args()
    settings = [*SETTINGS, f"seed={options.seed}", *options.set]
    settings += [f"encoder.cache_folder={options.output / 'states'}"] * (
        not any(one.startswith("encoder.cache_folder=") for one in options.set)
    )
    about = {"machine": described_machine(), "load": load(), "seed": options.seed}
    seeds = range(options.seed, options.seed + options.seeds)
    if options.pair:
        systems = pair(options.config, options.output, options.pair, settings, options.seed)
        verdict, kind = verdict_pair(systems), "pair"
    else:
        systems = whole(options.config, options.output, settings, seeds)
        verdict, kind = verdict_whole(systems), "extreme"
    said = [f"--config {options.config}", *([f"--pair {options.pair}"] if options.pair else []),
            *([f"--seeds {options.seeds}"] if options.seeds > 1 else []),
            *(f"--set {one}" for one in options.set if "cache_folder" not in one)]  # fmt: skip
    command = f"python benchmarks/extreme.py {' '.join(said)}"
    name = options.name or options.config.stem
    several = options.seeds > 1 and not options.pair
    spread = f" to {seeds[-1]}, mean ± standard deviation" if several else ""
    title = "shortlists against all labels" if options.pair else "against trees"
    lines = [f"# {name}: {title}", "",
             f"`{command}` on {about['machine']}, {about['load']} at the start; test split, "
             f"percent; seed {options.seed}{spread}.", "",
             *table(systems), "", *verdict, "", *bands(systems)]  # fmt: skip
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{kind}_{name}.md").write_text(text, encoding="utf-8")
    content = json.dumps({**about, "command": command, "systems": systems}, indent=1)
    (RESULTS / f"{kind}_{name}.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
