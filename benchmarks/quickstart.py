"""The quickstart over several seeds: test metrics beside its baselines, mean ± standard deviation.

    python benchmarks/quickstart.py --seeds 3

Runs the command of the README once a seed, each in a run folder of its own (a finished one is not
run again), and writes results/quickstart.md and .json beside this file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import described_machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"
METRICS = (
    "p@1", "p@3", "p@5", "r@10", "ndcg@5", "psp@1", "psp@5", "map", "micro_f1", "macro_f1",
    "macro_f1_present", "macro_auc",
)  # fmt: skip
Reports = list[dict[str, dict[str, float]]]


def run(config: Path, folder: Path, settings: list[str]) -> float:
    """Run every stage that is not up to date; return the seconds."""
    command = [sys.executable, "-m", "plant_dist", "run", "--config", str(config)]
    for setting in settings:
        command += ["--set", setting]
    start = time.perf_counter()
    subprocess.run([*command, "--output", str(folder)], check=True)
    return time.perf_counter() - start


def read_report(folder: Path) -> dict[str, dict[str, float]]:
    """Return system → metric → value."""
    report = json.loads((folder / "report" / "report.json").read_text(encoding="utf-8"))
    return {name: system["metrics"] for name, system in report["systems"].items()}


def stage_seconds(folder: Path) -> dict[str, float]:
    """Return what each artifact took to make, from its manifest."""
    stages = ("dataset", "gains", "ranker", "classifier", "report")
    manifests = {stage: json.loads((folder / stage / "manifest.json").read_text())
                 for stage in stages}  # fmt: skip
    return {stage: manifest["seconds"] for stage, manifest in manifests.items()}


def cell(values: list[float]) -> str:
    """Percent, with the standard deviation where it is not 0."""
    mean = 100 * statistics.mean(values)
    spread = 100 * statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{mean:.2f} ± {spread:.2f}" if spread > 0 else f"{mean:.2f}"


def table(reports: Reports) -> list[str]:
    """One row a metric, one column a system; the best mean is bold."""
    systems = list(reports[0])
    lines = [f"| metric | {' | '.join(systems)} |", "|---" * (len(systems) + 1) + "|"]
    for metric in METRICS:
        values = {system: [report[system][metric] for report in reports] for system in systems}
        best = max(systems, key=lambda system: statistics.mean(values[system]))
        cells = [
            f"**{cell(values[system])}**" if system == best else cell(values[system])
            for system in systems
        ]
        lines.append(f"| {metric} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds 0, 1, …")
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart-seeds"))
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--name", default="quickstart", help="name of the result files")
    options = parser.parse_args()
    folders = [options.output / f"seed{seed}" for seed in range(options.seeds)]
    for seed, folder in enumerate(folders):
        run(options.config, folder, [f"seed={seed}", *options.set])
    reports = [read_report(folder) for folder in folders]
    seconds = [stage_seconds(folder) for folder in folders]
    settings = "".join(f" --set {setting}" for setting in options.set)
    took = ", ".join(
        f"{stage} {statistics.mean(one[stage] for one in seconds):.0f}" for stage in seconds[0]
    )
    whole = [sum(one.values()) for one in seconds]
    lines = [
        f"# {options.name}: test split, percent", "",
        f"`python benchmarks/quickstart.py --config configs/{options.config.name} "
        f"--seeds {options.seeds}{settings}`: seeds 0 to {options.seeds - 1}, mean ± standard "
        f"deviation. {described_machine()}.", "",
        *table(reports), "",
        f"Seconds of the stages, mean: {took}; together {min(whole):.0f} to {max(whole):.0f}.",
    ]  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = {"reports": reports, "seconds": seconds}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
