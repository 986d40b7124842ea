"""Results of many runs beside one another: by variant and size of the training split, over seeds.

Writes the table of a sweep and draws its curve; must not know how a run is made.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from plant_dist.drawing import drawn, look, name_sizes
from plant_dist.metrics.report import markdown_table, title

DRAWN = "map"  # where it is among the metrics asked for; else the first of them is drawn


@dataclass(frozen=True)
class Measured:
    """What one run has reached.

    Attributes:
        documents: training documents that it had.
        metrics: of its report, fractions; None where a metric has no value.
    """

    variant: str
    documents: int
    seed: int
    metrics: Mapping[str, float | None]


def write_curve(
    folder: Path, heading: str, measured: Sequence[Measured], metrics: Sequence[str]
) -> list[Path]:
    """Write `sweep.json` (every run), `sweep.md` (means over seeds) and `sweep.png` (the curve).

    Files are replaced whole, so that several jobs may write the same table one after another.

    Returns:
        The files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(one) for one in measured]
    _replace(folder / "sweep.json", json.dumps({"title": heading, "runs": rows}, indent=1) + "\n")
    picture = folder / "sweep.png"
    text = f"# {heading}\n\n{curve_table(measured, metrics)}\n\n![curve]({picture.name})\n"
    _replace(folder / "sweep.md", text)
    metric = DRAWN if DRAWN in metrics else metrics[0]
    fresh = _beside(picture)
    with drawn(fresh) as axes:
        for order, (variant, runs) in enumerate(_grouped(measured, "variant").items()):
            points = {
                size: values for size, group in _grouped(runs, "documents").items()
                if (values := _values(group, metric))
            }  # fmt: skip
            sizes = sorted(points)
            means = [100 * statistics.mean(points[size]) for size in sizes]
            spread = [100 * _deviation(points[size]) for size in sizes]
            axes.errorbar(
                sizes, means, yerr=spread, capsize=3, marker="o", markersize=4,
                label=str(variant), **look(order),
            )  # fmt: skip
        axes.set(xlabel="training documents", ylabel=f"{title(metric)} (%)",
                 title=f"{title(metric)}, mean ± deviation over seeds")  # fmt: skip
        if measured:
            name_sizes(axes, sorted({one.documents for one in measured}))
            axes.legend(loc="best")
    fresh.replace(picture)
    return [folder / "sweep.json", folder / "sweep.md", picture]


def curve_table(measured: Sequence[Measured], metrics: Sequence[str]) -> str:
    """Return Markdown: a row for each variant and size, mean ± standard deviation over seeds."""
    rows = []
    # By size first: what stands one below the other was learnt from the same documents.
    for size, at_size in sorted(_grouped(measured, "documents").items()):
        for variant, runs in _grouped(at_size, "variant").items():
            cells = [_cell(_values(runs, metric)) for metric in metrics]
            rows.append([str(variant), f"{size:,}", str(len(runs)), *cells])
    header = ["variant", "documents", "seeds", *map(title, metrics)]
    return markdown_table(header, rows)


def _grouped(measured: Iterable[Measured], name: str) -> dict[int | str, list[Measured]]:
    found: dict[int | str, list[Measured]] = {}
    for one in measured:
        found.setdefault(getattr(one, name), []).append(one)
    return found


def _values(runs: Sequence[Measured], metric: str) -> list[float]:
    found = (one.metrics.get(metric) for one in runs)
    return [value for value in found if value is not None]


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "–"
    spread = f" ± {100 * _deviation(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{spread}"


def _replace(path: Path, text: str) -> None:
    fresh = _beside(path)
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def _beside(path: Path) -> Path:
    """Return a name that is this process's own, beside a file that several may replace."""
    return path.with_name(f".{path.stem}.{socket.gethostname()}-{os.getpid()}.partial{path.suffix}")
