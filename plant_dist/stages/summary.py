"""What a finished run says last: the table of metrics, where everything lies, what to do next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from plant_dist.data.expected import COLUMNS, count_cells
from plant_dist.data.prepared import PreparedDataset
from plant_dist.data.summary import describe_groups
from plant_dist.errors import ArtifactError
from plant_dist.metrics.report import title
from plant_dist.stages.pipeline import MAKER, Job

SHOWN = (
    "p@1", "p@3", "p@5", "r@10", "ndcg@5", "psp@1", "psp@5", "map", "micro_f1", "macro_f1",
    "macro_f1_present", "macro_auc",
)  # fmt: skip


def counts_summary(job: Job) -> str:
    """Return what a prepared corpus holds, beside what the literature says it does.

    Raises:
        ArtifactError: there is no prepared dataset.
    """
    statistics = PreparedDataset.load(job.artifact("dataset")).statistics
    lines = statistics["expected"]
    sources = dict.fromkeys(line["source"] for line in lines if line["source"])
    table = Table(title=f"{job.config.name}: counts", caption="\n".join(sources))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == COLUMNS[0] else "right")
    for line in lines:
        table.add_row(*count_cells(line))
    return f"{_rendered(table)}{describe_groups(statistics['split'])}"


def closing_summary(job: Job) -> str:
    """Return the closing text of a run, from its report.

    Raises:
        ArtifactError: the report cannot be read.
    """
    path = job.artifact("report") / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} cannot be read ({error}); run: {job.repair('report')}"
        ) from None
    tables = [_table(report["systems"], job.config.name)]
    if report["published"]:
        tables.append(_published(report))
    return _rendered(*tables) + _places(job.folder)


def _rendered(*tables: Table) -> str:
    # A fixed width, so that a batch job's log shows what a terminal would.
    console = Console(width=100, highlight=False)
    with console.capture() as captured:
        for table in tables:
            console.print(table)
    return captured.get()


def _table(systems: dict[str, Any], name: str) -> Table:
    table = Table(title=f"{name}: test split, percent")
    table.add_column("metric")
    for system in systems:
        table.add_column(system, justify="right")
    for metric in SHOWN:
        values = [one["metrics"].get(metric) for one in systems.values()]
        known = [value for value in values if value is not None]
        # Left out where no system has it: some metrics this test split may not be able to give.
        if known:
            cells = [_cell(value, max(known)) for value in values]
            table.add_row(title(metric), *cells)
    return table


def _published(report: dict[str, Any]) -> Table:
    """The result beside published figures; nothing is bold, since splits may differ."""
    table = Table(title="beside published figures, percent", caption="\n".join(
        f"{one['system']}: {one['origin']}" for one in report["published"]
    ))  # fmt: skip
    own = report["systems"][report["system"]]["metrics"]
    columns = {report["system"]: own} | {
        one["system"]: one["metrics"] for one in report["published"]
    }
    table.add_column("metric")
    for system in columns:
        table.add_column(system, justify="right")
    for metric in dict.fromkeys(key for one in report["published"] for key in one["metrics"]):
        values = [figures.get(metric) for figures in columns.values()]
        shown = ["–" if value is None else f"{100 * value:.2f}" for value in values]
        table.add_row(title(metric), *shown)
    return table


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return "–"
    shown = f"{100 * value:.2f}"
    return f"[bold]{shown}[/bold]" if value == best else shown


def _places(folder: Path) -> str:
    files = {"report": Path("report", "report.md")}
    lines = [
        f"  {name:<16}{folder / files.get(name, Path(name))}"
        for name in MAKER
        if (folder / name).exists()
    ]
    lines += [
        "",
        f"Curves:   tensorboard --logdir {folder / 'tensorboard'}",
        f"Predict:  plant-dist predict --model {folder / 'classifier'} FILE.jsonl",
    ]
    return "\n".join(lines)
