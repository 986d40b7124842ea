"""What plausibility.py found: as Markdown, as JSON and as pictures. Measures nothing anew."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from attributions import CONTRIBUTION, GAIN, GRADIENTS, RANDOM
from machine import described_machine
from numpy.typing import NDArray

from plant_dist.drawing import COLOURS, drawn, look
from plant_dist.metrics.bands import BANDS, band_name
from plant_dist.metrics.faithfulness import SHARES
from plant_dist.metrics.plausibility import MEASURES, AgreementSums, Plausibility
from plant_dist.metrics.significance import (
    RatioOfSums,
    bootstrap_interval,
    paired_bootstrap,
)

COLUMNS = {
    "auprc": "AUPRC", "iou": "IoU", "token_precision": "P", "token_recall": "R",
    "token_f1": "F1", "span_precision": "span P", "span_recall": "span R", "span_f1": "span F1",
}  # fmt: skip
FAITHFUL = ("comprehensiveness", "sufficiency")
COMBINED = "attention, combined"
# What our methods are to be ahead of.
RIVALS = (RANDOM, GAIN, *GRADIENTS)
Agreement = Mapping[str, Mapping[str, Plausibility]]
Sums = dict[str, AgreementSums]


@dataclass(frozen=True)
class Found:
    """What was measured: level (token, word) -> method -> agreement.

    Attributes:
        all_labels, all_validation: of all gold labels with evidence, without gradients.
        drawn, drawn_validation: of labels drawn, with gradients.
        faithfulness: method -> (P, 2) comprehensiveness and sufficiency of each pair.
        model: what the classifier itself is worth: metric -> value on test, from its report.
    """

    all_labels: Agreement
    all_validation: Agreement
    drawn: Agreement
    drawn_validation: Agreement
    faithfulness: Mapping[str, NDArray[np.float64]]
    model: Mapping[str, float]
    options: Mapping[str, str]
    seconds: float


def sums_of(test: Agreement, validation: Agreement, level: str) -> Sums:
    """Return the sums of each method, at the threshold that validation chose."""
    return {
        method: one.sums(validation[level][method].best_threshold())
        for method, one in test[level].items()
    }


def write_report(place: Path, name: str, found: Found, resamples: int) -> str:
    """Write PLACE.md, .json and .png, PLACE-bands.png; return the Markdown."""
    content: dict[str, Any] = {"machine": described_machine(), "options": dict(found.options),
                               "model": dict(found.model),
                               "seconds": round(found.seconds)}  # fmt: skip
    lines = list(_head(name, found))
    for title, test, validation in (
        ("All test documents", found.all_labels, found.all_validation),
        ("Labels drawn, gradients too", found.drawn, found.drawn_validation),
    ):
        for level in ("token", "word"):
            sums = sums_of(test, validation, level)
            rows = {method: measured(one, resamples) for method, one in sums.items()}
            pairs = next(iter(sums.values())).pairs
            lines += [f"## {title}, by {level} ({pairs} pairs)", "", *_table(rows), ""]
            content[f"{title}, by {level}"] = rows
            if level == "word" and test is found.drawn:
                ahead = comparisons(sums, resamples)
                content["ahead"] = ahead
                lines += ["### How far ahead, AUPRC by word", "", *_ahead(ahead), ""]
                _draw_methods(place.with_suffix(".png"), rows)
    bands = by_band(found.all_labels, found.all_validation, resamples)
    lines += ["## By training documents of the label, AUPRC by word", "", *_bands(bands), ""]
    _draw_bands(place.with_name(f"{place.name}-bands.png"), bands)
    faithful = {method: _faithful(one, resamples) for method, one in found.faithfulness.items()}
    # With --faithfulness-labels 0 it was not asked for.
    if faithful:
        pairs = len(next(iter(found.faithfulness.values())))
        lines += [f"## Faithfulness ({pairs} of the labels drawn)", "",
                  f"Means over the best {', '.join(f'{share:.0%}' for share in SHARES)} of the "
                  "tokens; interval over pairs.", "", *_faithful_table(faithful)]  # fmt: skip
    content |= {"bands": bands, "faithfulness": faithful}
    text = "\n".join(lines) + "\n"
    place.with_suffix(".md").write_text(text, encoding="utf-8")
    place.with_suffix(".json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    return text


def measured(sums: AgreementSums, resamples: int) -> dict[str, Any]:
    """Return every measure, and the intervals of AUPRC and F1."""
    intervals = {
        measure: asdict(bootstrap_interval(sums.measure(measure), resamples))
        for measure in ("auprc", "token_f1")
    }
    return {"pairs": sums.pairs, **sums.measures(), "intervals": intervals}


def comparisons(sums: Sums, resamples: int) -> dict[str, dict[str, Any]]:
    """Compare attention and contributions with what they are to be ahead of, on the same draws."""
    return {
        ours: {
            rival: asdict(
                paired_bootstrap(
                    sums[ours].measure("auprc"), sums[rival].measure("auprc"), resamples
                )
            )
            for rival in RIVALS
        }
        for ours in (COMBINED, CONTRIBUTION)
    }


def by_band(test: Agreement, validation: Agreement, resamples: int) -> dict[str, dict[str, Any]]:
    """Return band -> pairs, and AUPRC by word of each method with its interval."""
    bands: dict[str, dict[str, Any]] = {}
    for band in (band_name(*limits) for limits in BANDS):
        rows: dict[str, Any] = {}
        for method, one in test["word"].items():
            sums = one.sums(validation["word"][method].best_threshold(), {band})
            rows[method] = asdict(bootstrap_interval(sums.measure("auprc"), resamples))
            pairs = sums.pairs
        if pairs:
            bands[band] = {"pairs": pairs, "auprc": rows}
    return bands


def _head(name: str, found: Found) -> Iterator[str]:
    yield f"# {name}: plausibility and faithfulness, test split, percent"
    yield ""
    asked = ("max_tokens", "gradient_labels", "faithfulness_labels", "steps", "seed")
    said = [f"--{one.replace('_', '-')} {found.options[one]}" for one in asked
            if found.options[one] != "None"]  # fmt: skip
    yield (
        f"`python benchmarks/plausibility.py RUN {' '.join(said)}`. {described_machine()}. "
        "Tokens or words are predicted from a share of the largest score, chosen for F1 on "
        "validation documents; a span is found where it shares half of the union or more. AUPRC "
        "and IoU are means over (document, label) pairs. Brackets: the middle 95 % of "
        f"{found.options['resamples']} draws of documents."
    )
    yield ""
    worth = ", ".join(f"{name} {100 * value:.1f}" for name, value in found.model.items())
    yield f"The run's classifier, of its report on test: {worth}."
    yield ""


def _interval(one: Mapping[str, float]) -> str:
    return f"{100 * one['low']:.1f}–{100 * one['high']:.1f}"


def _table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """One row a method, percent; the best of each column is bold."""
    lines = [f"| method | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    best = {measure: max(row[measure] for row in rows.values()) for measure in MEASURES}
    for method, row in rows.items():
        cells = []
        for measure in COLUMNS:
            cell = f"{100 * row[measure]:.1f}"
            cell = f"**{cell}**" if row[measure] == best[measure] else cell
            interval = row["intervals"].get(measure)
            cells.append(f"{cell} [{_interval(interval)}]" if interval else cell)
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _ahead(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    lines = ["| | of | by | 95 % | draws where not |", "|---|---|---|---|---|"]
    for ours, rivals in found.items():
        for rival, one in rivals.items():
            lines.append(
                f"| {ours} | {rival} | {100 * one['difference']:.1f} | {_interval(one)} "
                f"| {100 * one['worse']:.1f} % |"
            )
    return lines


def _bands(bands: Mapping[str, Mapping[str, Any]]) -> list[str]:
    heads = [f"{band} ({row['pairs']} pairs)" for band, row in bands.items()]
    lines = [f"| method | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for method in next(iter(bands.values()))["auprc"]:
        cells = [
            f"{100 * row['auprc'][method]['value']:.1f} [{_interval(row['auprc'][method])}]"
            for row in bands.values()
        ]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _faithful(pairs_P2: NDArray[np.float64], resamples: int) -> dict[str, Any]:
    ones = np.ones(len(pairs_P2))
    return {
        name: asdict(bootstrap_interval(RatioOfSums(pairs_P2[:, column], ones), resamples))
        for column, name in enumerate(FAITHFUL)
    }


def _faithful_table(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = ["| method | comprehensiveness ↑ | sufficiency ↓ |", "|---|---|---|"]
    for method, row in rows.items():
        cells = [f"{100 * row[one]['value']:.1f} [{_interval(row[one])}]" for one in FAITHFUL]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return lines


def _draw_methods(path: Path, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Bars of AUPRC by method, best at the top, with intervals."""
    order = sorted(rows, key=lambda method: rows[method]["auprc"])
    with drawn(path) as axes:
        for place, method in enumerate(order):
            one = rows[method]["intervals"]["auprc"]
            value = 100 * one["value"]
            error = [[value - 100 * one["low"]], [100 * one["high"] - value]]
            colour = COLOURS[1] if method in GRADIENTS else COLOURS[0]
            axes.barh(place, value, color="#999999" if method == RANDOM else colour, xerr=error,
                      error_kw={"ecolor": "#333333", "elinewidth": 1.2, "capsize": 3})  # fmt: skip
        axes.set_yticks(range(len(order)), order, fontsize=9)
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(0, None), xlabel="AUPRC by word (%), and 95 % of draws of documents",
                 title="What points at the evidence that a coder marked?")  # fmt: skip


def _draw_bands(path: Path, bands: Mapping[str, Mapping[str, Any]]) -> None:
    methods = [CONTRIBUTION, COMBINED, "attention, planted", GAIN, "attention, learned", RANDOM]
    known = next(iter(bands.values()))["auprc"]
    with drawn(path) as axes:
        for order, method in enumerate(one for one in methods if one in known):
            found = [row["auprc"][method] for row in bands.values()]
            values = np.array([[one["value"], one["low"], one["high"]] for one in found]).T * 100
            # Side by side, or the intervals would lie on one another.
            places = np.arange(len(found)) + 0.08 * (order - 2.5)
            axes.errorbar(places, values[0], [values[0] - values[1], values[2] - values[0]],
                          marker="os^Dvx"[order], markersize=5, elinewidth=1, label=method,
                          **look(order))  # fmt: skip
        captions = [f"{band}\n{row['pairs']} pairs" for band, row in bands.items()]
        axes.set_xticks(range(len(captions)), captions, fontsize=9)
        axes.set(ylim=(0, 100), xlabel="training documents of the label",
                 ylabel="AUPRC by word (%)",
                 title="Evidence found, by how often a label was seen")  # fmt: skip
        axes.legend(loc="upper left", fontsize=8, ncols=2)
