"""A config over several seeds: test metrics beside its baselines, mean ± standard deviation.

    python benchmarks/seeds.py --seeds 3
    python benchmarks/seeds.py --config configs/codiesp.yaml --seeds 1 \\
        --each model.state=none,attention_state,logit_state

Runs the command of the README once a seed (and once a value of `--each`), each in a run folder of
its own; a finished one is not run again. Writes results/NAME.md and .json beside this file.
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
OURS = "PLANT"
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


def variants(each: str | None) -> dict[str, list[str]]:
    """Return a folder name and the settings of each value of KEY=V1,V2; one where it is unset."""
    if not each:
        return {"": []}
    key, _, values = each.partition("=")
    return {value: [f"{key}={value}"] for value in values.split(",")}


def joined(reports: dict[str, Reports]) -> Reports:
    """Seed by seed, the systems of all variants side by side, ours named after their values."""
    if list(reports) == [""]:
        return reports[""]
    sides: Reports = []
    for row in zip(*reports.values(), strict=True):
        side: dict[str, dict[str, float]] = {}
        for value, report in zip(reports, row, strict=True):
            side |= {f"{OURS}, {value}" if name == OURS else name: found
                     for name, found in report.items()}  # fmt: skip
        # Ours first, whatever the baselines of the first variant.
        sides.append(dict(sorted(side.items(), key=lambda one: not one[0].startswith(OURS))))
    return sides


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs/quickstart.yaml")
    parser.add_argument("--seeds", type=int, default=3, help="runs, with seeds 0, 1, …")
    parser.add_argument("--each", metavar="A.B=V1,V2", help="run all seeds with each value")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE")
    parser.add_argument("--output", type=Path, help="run folders; runs/NAME-seeds if unset")
    parser.add_argument("--name", help="name of the result files; the config's if unset")
    options = parser.parse_args()
    name = options.name or options.config.stem
    output = options.output or Path(f"runs/{name}-seeds")
    reports: dict[str, Reports] = {}
    seconds: dict[str, list[dict[str, float]]] = {}
    for value, settings in variants(options.each).items():
        folders = [output / value / f"seed{seed}" for seed in range(options.seeds)]
        for seed, folder in enumerate(folders):
            run(options.config, folder, [f"seed={seed}", *options.set, *settings])
        reports[value] = [read_report(folder) for folder in folders]
        seconds[value] = [stage_seconds(folder) for folder in folders]
    asked = [f"--each {options.each}"] if options.each else []
    asked += [f"--set {setting}" for setting in options.set]
    command = " ".join(["python benchmarks/seeds.py --config", f"configs/{options.config.name}",
                        f"--seeds {options.seeds}", *asked])  # fmt: skip
    spread = ", mean ± standard deviation" if options.seeds > 1 else ""
    lines = [
        f"# {name}: test split, percent", "",
        f"`{command}`: seeds 0 to {options.seeds - 1}{spread}. {described_machine()}.", "",
        *table(joined(reports)), "",
        *(timing(value, found) for value, found in seconds.items()),
    ]  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = {"reports": reports, "seconds": seconds}
    (RESULTS / f"{name}.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    print("\n".join(lines))


def timing(value: str, seconds: list[dict[str, float]]) -> str:
    """Say what the stages took."""
    took = ", ".join(
        f"{stage} {statistics.mean(one[stage] for one in seconds):.0f}" for stage in seconds[0]
    )
    whole = [sum(one.values()) for one in seconds]
    of = f" with {value}" if value else ""
    together = f"{min(whole):.0f} to {max(whole):.0f}"
    return f"Seconds of the stages{of}, mean: {took}; together {together}."


if __name__ == "__main__":
    main()
