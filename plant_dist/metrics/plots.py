"""Plots of results: precision-recall, F1 by label frequency, F1 by threshold, reliability.

Draws what it is given; must not compute metrics.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from plant_dist.drawing import COLOURS, drawn, look
from plant_dist.metrics.evaluator import Results
from plant_dist.metrics.reliability import CalibrationReport


def draw_plots(folder: Path, systems: Mapping[str, Results]) -> list[Path]:
    """Draw every plot the results allow into `folder`; the first system is drawn strongest.

    Returns:
        The PNG files written; without decisions only the precision-recall curve.
    """
    decided = bool(next(iter(systems.values())).decisions)
    drawings = {"precision_recall.png": _precision_recall}
    if decided:
        drawings |= {"f1_by_frequency.png": _f1_by_frequency, "f1_by_threshold.png": _f1_by_score}
    paths = []
    for name, draw in drawings.items():
        with drawn(folder / name) as axes:
            draw(axes, systems)
        paths.append(folder / name)
    return paths


def draw_reliability(folder: Path, report: CalibrationReport) -> Path:
    """Draw share right against probability, before and after, over the largest cut-off."""
    # The head is what a reader sees; among all pairs nearly every probability is near 0.
    heads = [name for name in report.before if name.startswith("best")]
    scope = heads[-1] if heads else next(iter(report.before))
    stages = {"calibrated" if report.after else "as they are": report.after or report.before}
    if report.after:
        stages = {"before calibration": report.before, **stages}
    with drawn(folder / "reliability.png") as axes:
        axes.plot([0, 100], [0, 100], color="#999999", linewidth=1.2, label="as it should be")
        for order, (name, scopes) in enumerate(stages.items()):
            found = scopes[scope]
            filled = found.counts > 0
            counts = found.counts[filled]
            axes.plot(
                100 * found.probability[filled] / counts,
                100 * found.hits[filled] / counts,
                marker="os"[order], markersize=5, **look(order),
                label=f"{name}, ECE {100 * found.ece:.1f} %",
            )  # fmt: skip
        axes.set(
            xlim=(0, 100), ylim=(0, 102), xlabel=f"mean probability of a bin (%), {scope}",
            ylabel="share right (%)", title="Can scores be read as probabilities?",
        )  # fmt: skip
        axes.legend(loc="best")
    return folder / "reliability.png"


def _precision_recall(axes: Any, systems: Mapping[str, Results]) -> None:
    for order, (name, results) in enumerate(systems.items()):
        curve = results.curve
        axes.plot(
            100 * curve.recall,
            100 * curve.precision,
            **look(order),
            linewidth=2.4 if order == 0 else 1.6,
            label=name,
            # The system reported lies on top of its baselines.
            zorder=len(systems) - order + 2,
        )
    axes.set(
        xlim=(0, 100),
        # Headroom, or a curve at 100 % loses half its width.
        ylim=(0, 102),
        xlabel="micro recall (%)",
        ylabel="micro precision (%)",
        title="Precision and recall over all thresholds",
    )
    axes.legend(loc="best")


def _f1_by_frequency(axes: Any, systems: Mapping[str, Results]) -> None:
    """Bars of macro F1; a band without gold in the split has no bars, and is said to have none."""
    first = next(iter(systems.values()))
    bands = [band for band in first.bands if band.labels]
    places, width = np.arange(len(bands)), 0.8 / len(systems)
    for order, (name, results) in enumerate(systems.items()):
        values = {band.name: band.metrics.get("macro_f1", np.nan) for band in results.bands}
        heights = np.array([100 * values[band.name] for band in bands])
        bars = axes.bar(
            # Bars of a band side by side, centred on its tick.
            places + (order - (len(systems) - 1) / 2) * width,
            # A bar of NaN breaks the limits of the axis; one of height 0 without a caption is none.
            np.nan_to_num(heights),
            width * 0.92,
            color=look(order)["color"],
            label=name,
        )
        # Captions on the reported system only: more would run into each other.
        if order == 0:
            texts = ["" if np.isnan(height) else f"{height:.1f}" for height in heights]
            axes.bar_label(bars, texts, padding=2, fontsize=8, color="#333333")
    captions = [f"{band.name}\n{band.labels_present:,} labels" for band in bands]
    axes.set_xticks(places, captions, fontsize=9)
    axes.grid(axis="x", visible=False)
    axes.margins(y=0.12)
    axes.set(
        ylim=(0, None),
        xlabel="training documents of the label, and labels present in this split",
        ylabel="macro F1 (%)",
        title="F1 by how often a label was seen in training",
    )
    if len(systems) > 1:
        axes.legend(loc="best")


def _f1_by_score(axes: Any, systems: Mapping[str, Results]) -> None:
    # Other systems score on other scales, so one axis cannot hold them.
    results = next(iter(systems.values()))
    curve, f1 = results.curve, results.curve.f1
    for order, (name, values) in enumerate(
        (("F1", f1), ("precision", curve.precision), ("recall", curve.recall))
    ):
        axes.plot(
            curve.thresholds,
            100 * values,
            **look(order),
            linewidth=2.4 if order == 0 else 1.6,
            label=name,
        )
    tuned = results.definitions["thresholds"]["global"]
    axes.axvline(tuned, color="#555555", linewidth=1.2, label="tuned on validation")
    if len(f1):
        best = int(np.argmax(f1))
        axes.plot(
            curve.thresholds[best], 100 * f1[best], "o", color=COLOURS[0], markersize=7,
            markerfacecolor="white", markeredgewidth=2, label=f"best here: {100 * f1[best]:.1f}",
        )  # fmt: skip
        # The long tail where F1 is near 0 would squeeze the part that one chooses from.
        worth = curve.thresholds[f1 > 0.02 * f1[best]]
        if len(worth) and worth.min() < worth.max():
            axes.set_xlim(min(worth.min(), tuned), max(worth.max(), tuned))
    axes.set(
        ylim=(0, 102),
        xlabel="global threshold on the score",
        ylabel="micro average (%)",
        title="Choosing the threshold",
    )
    axes.legend(loc="best")
