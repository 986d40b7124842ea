"""Tables, paired comparisons and the few-shot curve of an ablation, from its finished rows."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ablation_rows import CONTRASTS, LINEAR, METRICS, OF_DEFAULT, PLANTED, ROWS
from ablation_sums import MeanOfSeeds, unpacked

from plant_dist.drawing import look, name_sizes, panels
from plant_dist.metrics.significance import paired_bootstrap

RESULTS = Path(__file__).parent / "results"
BANDS = ("unseen", "1-5", "6-10", "11-50", "51-100", ">100")
CURVE_METRICS = {"p@5": "P@5", "map": "MAP", "macro_f1_present": "macro F1 of labels present"}
SHOWN = {"r@50": "R@50", "macro_f1": "macro F1"}
OTHERS = {
    "within_p@1": "P@1 within the band", "within_p@5": "P@5 within the band",
    "within_p@8": "P@8 within the band", "within_p@15": "P@15 within the band", "r@10": "R@10",
    "within_ndcg@5": "nDCG@5 within the band", "within_psp@1": "PSP@1 within the band",
    "within_psp@5": "PSP@5 within the band", "micro_f1": "micro F1",
    "within_map": "MAP within the band",
}  # fmt: skip
Record = Mapping[str, Any]


def write_tables(name: str, options: argparse.Namespace, records: Sequence[Record]) -> None:
    """Write what is finished so far."""
    chosen = at_own_rates(records, options.default_rate)
    whole = [one for one in chosen if one["train_documents"] is None]
    comparisons = compared(whole)
    machines = sorted({one["machine"] for one in records})
    lines = [
        f"# Ablation on {name}: test split, percent", "",
        f"`{command(options)}`, mean ± standard deviation over seeds; fewer seeds where a row is "
        f"not finished. {'; '.join(machines)}, other work beside it. Encoder frozen unless a row "
        f"says fine-tuned. Each row at its own rate, chosen on validation; the default ({PLANTED}) "
        "and what differs from it in one thing at the config's.", "",
        *main_table(whole), "", *band_tables(whole, SHOWN),
        f"[Every other metric by training documents](ablation_{name}_bands.md)", "",
        *comparison_lines(comparisons),
        *rate_lines(records), *curve_lines(
            options.results / f"ablation_{name}.png", chosen, options.train_documents
        ),
    ]  # fmt: skip
    (options.results / f"ablation_{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    bands = [
        f"# Ablation on {name}, by training documents of the label: test split, percent", "",
        f"`{command(options)}`, as [the other measures](ablation_{name}.md). Within a band, the "
        "ranking is that of the band's labels alone, over documents that hold one of them. Means "
        "are over the seeds whose lines have the measure: the first lines kept fewer.", "",
        *band_tables(whole, OTHERS),
    ]  # fmt: skip
    place = options.results / f"ablation_{name}_bands.md"
    place.write_text("\n".join(bands) + "\n", encoding="utf-8")
    path = options.results / f"ablation_{name}.json"
    path.write_text(json.dumps({"command": command(options), "comparisons": comparisons}, indent=1)
                    + "\n", encoding="utf-8")  # fmt: skip


def title_of(record: Record) -> str:
    """Return a row's name in tables."""
    return f"{record['row']}, fine-tuned" if record["fine_tuned"] else str(record["row"])


def at_own_rates(records: Sequence[Record], default_rate: float) -> list[Record]:
    """Return the records of every row's own rate, rows in their order."""
    order = {row: place for place, row in enumerate([*LINEAR, *ROWS])}
    rates = dict.fromkeys(OF_DEFAULT, default_rate)
    for row in order.keys() - rates.keys():
        tried = [one for one in records if one["row"] == row and is_trial(one)]
        if tried:
            rates[row] = max(tried, key=lambda one: one["validation_map"])["rate"]
    own = [one for one in records if one["row"] in order and rates.get(one["row"]) == one["rate"]]
    return sorted(own, key=lambda one: (one["fine_tuned"], order[one["row"]], one["seed"]))


def is_trial(record: Record) -> bool:
    """True for a row that a rate may be chosen by."""
    return (record["seed"], record["train_documents"], record["fine_tuned"]) == (0, None, False)


def command(options: argparse.Namespace) -> str:
    """Return the command that makes the table."""
    words = ["python benchmarks/ablation.py --config", f"configs/{options.config.name}",
             f"--seeds {options.seeds}"]  # fmt: skip
    words += [f"--few-shot {' '.join(map(str, options.few_shot))}"] if options.few_shot else []
    return " ".join([*words, *(f"--set {setting}" for setting in options.set)])


def by_title(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the records of each row, a seed each."""
    rows: dict[str, list[Record]] = {}
    for one in records:
        rows.setdefault(title_of(one), []).append(one)
    return rows


def cell(values: Sequence[float | None]) -> str:
    """Percent; a dash where nothing is measured."""
    real = [100 * value for value in values if value is not None]
    if not real:
        return "–"
    spread = f" ± {statistics.stdev(real):.1f}" if len(real) > 1 else ""
    return f"{statistics.mean(real):.1f}{spread}"


def main_table(records: Sequence[Record]) -> list[str]:
    """One row a system."""
    lines = [
        f"| system | {' | '.join(METRICS)} | rate | seeds | s |",
        "|---" * (len(METRICS) + 4) + "|",
    ]
    for title, results in by_title(records).items():
        cells = [cell([one["metrics"].get(metric) for one in results]) for metric in METRICS]
        seconds = statistics.mean(one["seconds"] for one in results)
        rate = "–" if results[0]["rate"] is None else f"{results[0]['rate']:g}"
        lines.append(f"| {title} | {' | '.join(cells)} | {rate} | {len(results)} | {seconds:.0f} |")
    return lines


def band_tables(records: Sequence[Record], metrics: Mapping[str, str]) -> list[str]:
    """One table a metric: rows are systems, columns bands of training documents."""
    lines = []
    for metric, shown in metrics.items():
        lines += [f"## {shown} by training documents of the label", "",
                  f"| system | {' | '.join(BANDS)} |", "|---" * (len(BANDS) + 1) + "|"]  # fmt: skip
        for title, results in by_title(records).items():
            bands = [one["bands"] for one in results]
            cells = [cell([one.get(band, {}).get(metric) for one in bands]) for band in BANDS]
            lines.append(f"| {title} | {' | '.join(cells)} |")
        lines.append("")
    return lines


def compared(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Planted against unplanted on the same documents, frozen and fine-tuned."""
    found = []
    for planted, unplanted in CONTRASTS:
        for tuned in (False, True):
            sides = [
                {one["seed"]: unpacked(one["compared"]) for one in records
                 if one["row"] == name and one["fine_tuned"] == tuned}
                for name in (planted, unplanted)
            ]  # fmt: skip
            both = sorted(set(sides[0]) & set(sides[1]))
            for metric in sides[0][both[0]] if both else ():
                one, other = (MeanOfSeeds([side[seed][metric] for seed in both]) for side in sides)
                found.append({
                    "planted": planted, "unplanted": unplanted, "metric": metric,
                    "fine_tuned": tuned, "seeds": len(both), **vars(paired_bootstrap(one, other)),
                })  # fmt: skip
    return found


def rate_lines(records: Sequence[Record]) -> list[str]:
    """Say what each rate gave on validation, which is what rows chose theirs by."""
    rows = ROWS.keys() - set(OF_DEFAULT)
    tried = [one for one in records if is_trial(one) and one["row"] in rows]
    rates = sorted({one["rate"] for one in tried})
    lines = ["## Rates: MAP on validation, seed 0", "",
             f"| system | {' | '.join(f'{rate:g}' for rate in rates)} |",
             "|---" * (len(rates) + 1) + "|"]  # fmt: skip
    for title, results in by_title(tried).items():
        found = {one["rate"]: one["validation_map"] for one in results}
        lines.append(f"| {title} | {' | '.join(cell([found.get(rate)]) for rate in rates)} |")
    return [*lines, ""]


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


def curve_lines(picture: Path, records: Sequence[Record], documents: int | None) -> list[str]:
    """Tabulate and plot what a row is worth by the number of training documents.

    Args: documents: training documents of the whole corpus, where curves end; unknown if None.
    """
    curves = {
        title: by_size(results, documents)
        for title, results in by_title([one for one in records if not one["fine_tuned"]]).items()
        if any(one["train_documents"] for one in results)
    }
    if not curves:
        return []
    sizes = sorted({size for curve in curves.values() for size in curve})
    lines = ["## Few-shot curve", "", f"![few-shot curve]({picture.name})", ""]
    with panels(picture, len(CURVE_METRICS)) as panes:
        for axes, (metric, shown) in zip(panes, CURVE_METRICS.items(), strict=True):
            lines += [f"{shown} by training documents:", "",
                      f"| system | {' | '.join(f'{size:,}' for size in sizes)} |",
                      "|---" * (len(sizes) + 1) + "|"]  # fmt: skip
            for order, (title, curve) in enumerate(curves.items()):
                found = {
                    size: [one["metrics"].get(metric) for one in some]
                    for size, some in curve.items()
                }
                cells = (cell(found.get(size, [])) for size in sizes)
                lines.append(f"| {title} | {' | '.join(cells)} |")
                draw(axes, order, title, found)
            lines.append("")
            axes.set(xlabel="training documents", ylabel=f"{shown} (%)", ylim=(0, None))
            name_sizes(axes, sizes)
    return lines


def by_size(records: Sequence[Record], documents: int | None) -> dict[int, list[Record]]:
    """Return one row's records by their number of training documents."""
    found: dict[int, list[Record]] = {}
    for one in records:
        size = one["train_documents"] or documents
        if size is not None:
            found.setdefault(size, []).append(one)
    return dict(sorted(found.items()))


def draw(axes: Any, order: int, title: str, found: Mapping[int, Sequence[float | None]]) -> None:
    """Draw one system: the mean over seeds and a band of one standard deviation."""
    seeds = {size: [100 * one for one in values if one is not None]
             for size, values in found.items()}  # fmt: skip
    # A measure that nothing counts for is no point of a curve, and not 0.
    sizes = [size for size, values in seeds.items() if values]
    means = np.array([statistics.mean(seeds[size]) for size in sizes])
    spread = np.array(
        [statistics.stdev(seeds[size]) if len(seeds[size]) > 1 else 0.0 for size in sizes]
    )
    style = look(order)
    axes.plot(sizes, means, marker="o", markersize=4, label=title, **style)
    axes.fill_between(sizes, means - spread, means + spread, alpha=0.2, color=style["color"])
