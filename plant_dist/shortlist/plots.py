"""The curve of an index's recall against the milliseconds of its search, as a picture.

Must not know how it was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from plant_dist.drawing import COLOURS, LINES, drawn
from plant_dist.shortlist.quality import TOP, SearchPoint


def save_curve(
    points: Sequence[SearchPoint], chosen: SearchPoint | None, target: float, path: Path
) -> None:
    """Draw the settings, the one chosen and the recall aimed at into a PNG file."""
    name = points[0].search.rpartition("=")[0] if points else ""
    with drawn(path) as axes:
        axes.plot(
            [point.milliseconds for point in points], [100 * point.recall for point in points],
            color=COLOURS[0], marker="o", markersize=4,
        )  # fmt: skip
        for point in points:
            # The number alone: whole settings run into each other where recall is flat.
            axes.annotate(
                point.search.rpartition("=")[2], (point.milliseconds, 100 * point.recall),
                fontsize=7, color="#333333", ha="center", xytext=(0, 6),
                textcoords="offset points",
            )  # fmt: skip
        if chosen is not None:
            axes.plot(
                chosen.milliseconds, 100 * chosen.recall, "o", color=COLOURS[5], markersize=9,
                markerfacecolor="none", markeredgewidth=2, label=f"chosen: {chosen.search}",
            )  # fmt: skip
        axes.axhline(
            100 * target, linestyle=LINES[1], linewidth=1.2, color="#555555",
            label=f"aimed at: {100 * target:.0f} %",
        )  # fmt: skip
        axes.set_xscale("log")
        axes.margins(x=0.08)
        axes.set(
            ylim=(None, 106), xlabel="milliseconds per document",
            ylabel=f"exact best {TOP} retrieved (%)",
            title=f"What an index finds, and how fast{f', by {name}' if name else ''}",
        )  # fmt: skip
        axes.legend(loc="lower right")
