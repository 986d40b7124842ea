"""The curve of an index's recall against the milliseconds of its search, as a picture.

Must not know how it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plant_dist.shortlist.quality import TOP, SearchPoint


def save_curve(
    points: Sequence[SearchPoint], chosen: SearchPoint | None, target: float, path: Path
) -> None:
    """Draw the settings, the one chosen and the recall aimed at into a PNG file."""
    # Without pyplot, which would hold a figure and look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.plot([p.milliseconds for p in points], [p.recall for p in points], marker="o")
    for point in points:
        axes.annotate(point.search, (point.milliseconds, point.recall), fontsize=6,
                      xytext=(3, -8), textcoords="offset points")  # fmt: skip
    if chosen is not None:
        axes.plot(chosen.milliseconds, chosen.recall, marker="*", markersize=14, color="tab:red")
    axes.axhline(target, linestyle="--", linewidth=0.8, color="grey")
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds per document")
    axes.set_ylabel(f"share of the exact best {TOP} retrieved")
    figure.savefig(path)
