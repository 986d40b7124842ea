"""Tables, paired comparisons and the few-shot curve of an ablation, from its finished rows."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from ablation_rows import CONTRASTS, Place, reopened
from machine import described_machine
from numpy.typing import NDArray

from plant_dist.metrics.significance import (
    DocumentSums,
    macro_f1_sums,
    paired_bootstrap,
    precision_sums,
    recall_sums,
)

RESULTS = Path(__file__).parent / "results"
METRICS = ("p@1", "p@5", "p@8", "p@15", "r@10", "ndcg@5", "psp@1", "psp@5", "micro_f1", "macro_f1",
           "macro_f1_present", "map")  # fmt: skip
BANDS = ("unseen", "1-5", "6-10", "11-50", "51-100", ">100")
BAND_METRICS = {"r@50": "R@50", "macro_f1": "macro F1"}
RARE = (1, 10)  # training documents of the labels that planting is for


@dataclass(frozen=True)
class MeanOfSeeds:
    """A metric's mean over seeds, all on the same draw of documents."""

    parts: Sequence[DocumentSums]

    @property
    def documents(self) -> int:
        """D."""
        return self.parts[0].documents

    def of(self, weights_RD: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean (R,)."""
        found: NDArray[np.float64] = np.mean([one.of(weights_RD) for one in self.parts], axis=0)
        return found


def write_tables(name: str, options: argparse.Namespace, places: Sequence[Place]) -> None:
    """Write what is finished so far."""
    done = [place for place in places if place.result.exists()]
    whole = [place for place in done if place.subset is None]
    comparisons = compared(options, whole)
    lines = [
        f"# Ablation on {name}: test split, percent", "",
        f"`{command(options)}`, mean ± standard deviation over seeds; fewer seeds where a row is "
        f"not finished. {described_machine()}. Encoder frozen unless a row says fine-tuned.", "",
        *main_table(whole), "", *band_tables(whole), *comparison_lines(comparisons),
        *curve_lines(name, done),
    ]  # fmt: skip
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"ablation_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plain = {
        "command": command(options),
        "rows": [
            {"row": place.title, "seed": place.seed, "train_documents": place.subset,
             **{part: result(place)[part] for part in ("metrics", "bands", "seconds")}}
            for place in done
        ],
        "comparisons": comparisons,
    }  # fmt: skip
    path = RESULTS / f"ablation_{name}.json"
    path.write_text(json.dumps(plain, indent=1), encoding="utf-8")


def command(options: argparse.Namespace) -> str:
    """Return the command that made the table."""
    words = ["python benchmarks/ablation.py --config", f"configs/{options.config.name}",
             f"--seeds {options.seeds}"]  # fmt: skip
    words += [f"--few-shot {' '.join(map(str, options.few_shot))}"] if options.few_shot else []
    return " ".join([*words, *(f"--set {setting}" for setting in options.set)])


def result(place: Place) -> dict[str, Any]:
    """Read a finished row."""
    found: dict[str, Any] = json.loads(place.result.read_text(encoding="utf-8"))
    return found


def by_title(places: Sequence[Place]) -> dict[str, list[dict[str, Any]]]:
    """Return the results of each row, a seed each."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for place in places:
        rows.setdefault(place.title, []).append(result(place))
    return rows


def cell(values: Sequence[float | None]) -> str:
    """Percent; a dash where nothing is measured."""
    real = [100 * value for value in values if value is not None]
    if not real:
        return "–"
    spread = f" ± {statistics.stdev(real):.1f}" if len(real) > 1 else ""
    return f"{statistics.mean(real):.1f}{spread}"


def main_table(places: Sequence[Place]) -> list[str]:
    """One row a system."""
    lines = [f"| system | {' | '.join(METRICS)} | seeds | s |", "|---" * (len(METRICS) + 3) + "|"]
    for title, results in by_title(places).items():
        cells = [cell([one["metrics"].get(metric) for one in results]) for metric in METRICS]
        seconds = statistics.mean(one["seconds"] for one in results)
        lines.append(f"| {title} | {' | '.join(cells)} | {len(results)} | {seconds:.0f} |")
    return lines


def band_tables(places: Sequence[Place]) -> list[str]:
    """One table a metric: rows are systems, columns bands of training documents."""
    lines = []
    for metric, shown in BAND_METRICS.items():
        lines += [f"## {shown} by training documents of the label", "",
                  f"| system | {' | '.join(BANDS)} |", "|---" * (len(BANDS) + 1) + "|"]  # fmt: skip
        for title, results in by_title(places).items():
            bands = [{band["name"]: band["metrics"] for band in one["bands"]} for one in results]
            cells = [cell([one[band].get(metric) for one in bands]) for band in BANDS]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def compared(options: argparse.Namespace, places: Sequence[Place]) -> list[dict[str, Any]]:
    """Planted against unplanted on the same documents, frozen and fine-tuned."""
    opened: dict[Place, dict[str, DocumentSums]] = {}
    found = []
    for planted, unplanted in CONTRASTS:
        for tuned in (False, True):
            sides = [
                {place.seed: place for place in places
                 if place.name == name and place.tuned == tuned}
                for name in (planted, unplanted)
            ]  # fmt: skip
            both = sorted(set(sides[0]) & set(sides[1]))
            if not both:
                continue
            for place in (side[seed] for side in sides for seed in both):
                # A row stands in several contrasts and is read once.
                if place not in opened:
                    opened[place] = sums(options, place)
            for metric in opened[sides[0][both[0]]]:
                one, other = (
                    MeanOfSeeds([opened[side[seed]][metric] for seed in both]) for side in sides
                )
                found.append({
                    "planted": planted, "unplanted": unplanted, "metric": metric,
                    "fine_tuned": tuned, "seeds": len(both), **vars(paired_bootstrap(one, other)),
                })  # fmt: skip
    return found


def sums(options: argparse.Namespace, place: Place) -> dict[str, DocumentSums]:
    """Return what is compared of a finished row."""
    evaluator, thresholds = reopened(options.config, place, options.set)
    predictions, frequency = evaluator.predictions(), evaluator.train_frequency
    rare = (frequency >= RARE[0]) & (frequency <= RARE[1])
    everything = np.ones(len(frequency), dtype=bool)
    return {
        "P@1": precision_sums(predictions, 1),
        "P@5": precision_sums(predictions, 5),
        "macro F1, labels present": macro_f1_sums(predictions, thresholds, everything),
        "macro F1, labels of 1-10": macro_f1_sums(predictions, thresholds, rare),
        "R@50, labels of 1-10": recall_sums(predictions, 50, rare),
    }


def comparison_lines(comparisons: Sequence[dict[str, Any]]) -> list[str]:
    """Say how far planting is ahead, and whether that could be chance."""
    if not comparisons:
        return []
    lines = [
        "## Planted less unplanted", "",
        "Paired bootstrap over test documents, 2,000 resamples, the mean over seeds on each; "
        "percentage points. `worse`: share of resamples in which planting is not ahead.", "",
        "| planted | unplanted | encoder | metric | difference | 95 % interval | worse | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for one in comparisons:
        encoder = "fine-tuned" if one["fine_tuned"] else "frozen"
        low, high = 100 * one["low"], 100 * one["high"]
        interval, ahead = f"{low:.1f} to {high:.1f}", f"{100 * one['difference']:.1f}"
        cells = [one["planted"], one["unplanted"], encoder, one["metric"], ahead, interval,
                 f"{one['worse']:.3f}", one["seeds"]]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return [*lines, ""]


def curve_lines(name: str, places: Sequence[Place]) -> list[str]:
    """Plot MAP and macro-F1 against the number of training documents, and link the plot."""
    sizes = sorted({place.subset for place in places if place.subset is not None})
    if not sizes:
        return []
    titles = list(dict.fromkeys(place.title for place in places if place.subset is not None))
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for axis, metric in zip(axes, ("map", "macro_f1_present"), strict=True):
        for title in titles:
            draw(axis, metric, [place for place in places if place.title == title])
        axis.set(xscale="log", xlabel="training documents", ylabel=f"{metric}, percent")
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(RESULTS / f"ablation_{name}.png", dpi=120)
    plt.close(figure)
    return ["## Few-shot curve", "", f"![few-shot curve](ablation_{name}.png)", ""]


def draw(axis: Any, metric: str, places: Sequence[Place]) -> None:
    """Draw one system: the mean over seeds and a band of one standard deviation."""
    by_size: dict[int, list[float]] = {}
    for place in places:
        found = result(place)
        by_size.setdefault(found["definitions"]["train_documents"], []).append(
            100 * (found["metrics"].get(metric) or 0.0)
        )
    sizes = sorted(by_size)
    means = np.array([statistics.mean(by_size[size]) for size in sizes])
    spread = np.array([statistics.pstdev(by_size[size]) for size in sizes])
    [line] = axis.plot(sizes, means, marker="o", label=places[0].title)
    axis.fill_between(sizes, means - spread, means + spread, alpha=0.2, color=line.get_color())
