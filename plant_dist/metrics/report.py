"""Results as files: JSON at full precision, Markdown tables, PNG plots.

Puts one system beside its baselines on the same split and prints the definitions used. Must not
compute any metric; the drawing itself is in `plots.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from plant_dist.config.published import PublishedFigures
from plant_dist.data.expected import COLUMNS, count_cells
from plant_dist.data.summary import describe_groups
from plant_dist.metrics.bands import BandResult
from plant_dist.metrics.evaluator import Results
from plant_dist.metrics.plots import draw_plots, draw_reliability
from plant_dist.metrics.reliability import SCOPES, CalibrationReport

# The summary's rows follow this order.
_NAMES = {
    "p": "P", "r": "R", "ndcg": "nDCG", "psp": "PSP", "psr": "PSR", "psndcg": "PSnDCG",
    "map": "MAP", "r_precision": "R-precision", "micro_auc": "micro AUC", "macro_auc": "macro AUC",
    "micro_precision": "micro precision", "micro_recall": "micro recall", "micro_f1": "micro F1",
    "macro_precision": "macro precision", "macro_recall": "macro recall", "macro_f1": "macro F1",
    "macro_f1_caml": "macro F1 (CAML)", "macro_f1_present": "macro F1, labels present",
    "macro_f1_caml_present": "macro F1 (CAML), labels present",
}  # fmt: skip
_FAMILIES = ("p", "r", "ndcg", "psp", "psr", "psndcg")
_NOTHING = "–"  # where a metric has no value
_RULES = {"global": "one score", "per_label": "a score per label", "top_k": "top k"}


def write_report(
    folder: Path,
    system: str,
    results: Results,
    baselines: Mapping[str, Results] | None = None,
    split: str = "test",
    reliability: CalibrationReport | None = None,
    published: Sequence[PublishedFigures] = (),
    corpus: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write `report.json`, `report.md` and the plots.

    Args:
        folder: an existing folder.
        system: name of the system that `results` belong to.
        baselines: results of reference systems on the same split, by name.
        split: name of the split, for the title.
        reliability: of the system's scores; others may score on scales that are no logits.
        published: figures of others, printed with their sources.
        corpus: statistics of the prepared dataset: its counts beside the literature, its groups.

    Returns:
        The files written.
    """
    # First, since tables and plots take the first system as the one reported.
    systems = {system: results, **(baselines or {})}
    plots = draw_plots(folder, systems)
    if reliability is not None:
        plots.append(draw_reliability(folder, reliability))
    content = {
        "system": system,
        "split": split,
        "systems": {name: one.as_json() for name, one in systems.items()},
        "calibration": None if reliability is None else reliability.as_json(),
        "published": [asdict(one) | {"origin": one.origin} for one in published],
        "counts": [] if corpus is None else corpus["expected"],
    }
    as_json, as_markdown = folder / "report.json", folder / "report.md"
    # A NaN that slipped through is an error here, not a file that others cannot read.
    as_json.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    text = markdown(systems, split, plots, reliability, published, corpus)
    as_markdown.write_text(text, encoding="utf-8")
    return [as_json, as_markdown, *plots]


def markdown(
    systems: Mapping[str, Results],
    split: str,
    plots: Sequence[Path] = (),
    reliability: CalibrationReport | None = None,
    published: Sequence[PublishedFigures] = (),
    corpus: Mapping[str, Any] | None = None,
) -> str:
    """Render the report; the first system is the one reported, the others stand beside it."""
    name, results = next(iter(systems.items()))
    parts = [
        f"# {name} on {split}",
        f"{_facts(results)} All figures in percent; the best of a row in bold.",
        summary_table(systems),
        *_published(name, results, published),
        *_corpus(corpus),
        f"## Cut-offs of {name}",
        _cut_off_table(results),
    ]
    if results.decisions:
        parts += [f"## Decision rules of {name}", _decision_table(results)]
    if reliability is not None:
        parts += [f"## Calibration of {name}", _fits(reliability), _reliability_table(reliability)]
    parts += [
        f"## Label-frequency bands of {name}",
        _band_table(results),
        "## Recall by band",
        _recall_table(systems),
        "## Definitions",
        "\n".join(f"- {line}" for line in definitions(results)),
    ]
    parts += [f"![{plot.stem.replace('_', ' ')}]({plot.name})" for plot in plots]
    return "\n\n".join(parts) + "\n"


def summary_table(systems: Mapping[str, Results]) -> str:
    """One row a metric, one column a system; the best of a row in bold."""
    results = next(iter(systems.values()))
    names = list(systems)
    rows = []
    for metric in _summary_metrics(results):
        values = [one.metrics.get(metric, math.nan) for one in systems.values()]
        # Compared as printed, so that figures that look equal are both bold.
        best = _percent(max((value for value in values if not math.isnan(value)), default=math.nan))
        shown = [_percent(value) for value in values]
        cells = [f"**{cell}**" if cell == best != _NOTHING else cell for cell in shown]
        rows.append([title(metric), *cells])
    return markdown_table(["metric", *names], rows)


def _published(system: str, results: Results, published: Sequence[PublishedFigures]) -> list[str]:
    """The result beside what others have printed; nothing where no figure is given."""
    if not published:
        return []
    metrics = dict.fromkeys(metric for one in published for metric in one.metrics)
    columns = [results.metrics, *(one.metrics for one in published)]
    rows = [
        [title(metric), *(_percent(column.get(metric, math.nan)) for column in columns)]
        for metric in metrics
    ]
    return [
        "## Published figures",
        markdown_table(["metric", system, *(one.system for one in published)], rows),
        "\n".join(f"- {one.system}: {one.origin}" for one in published),
        "As their authors printed them: check that documents, labels and definitions (below) are "
        "the same before comparing.",
    ]


def _corpus(statistics: Mapping[str, Any] | None) -> list[str]:
    """What the corpus holds beside what the literature says it does, and whether a split leaks."""
    if statistics is None:
        return []
    lines = statistics["expected"]
    sources = dict.fromkeys(line["source"] for line in lines if line["source"])
    note = "Counts of the literature: " + "; ".join(sources) + "."
    table = markdown_table(COLUMNS, [count_cells(line) for line in lines])
    groups = f"{describe_groups(statistics['split'])}.".capitalize()
    return ["## Corpus", table, *([note] if sources else []), groups]


def title(metric: str) -> str:
    """The name that a reader knows: `ndcg@5` is nDCG@5."""
    family, at, k = metric.partition("@")
    return _NAMES.get(family, family) + at + k


def definitions(results: Results) -> list[str]:
    """Sentences that say what the figures mean."""
    # From what was measured, not from a config: a report says what was done.
    facts = results.definitions
    a, b, n = (facts[key] for key in ("propensity_a", "propensity_b", "train_documents"))
    empty = facts["documents_without_gold"]
    rule = "left out of" if facts["empty_gold"] == "skip" else "counted as 0 in"
    lines = [
        f"PSP, PSR, PSnDCG: propensities of Jain et al. 2016, A = {a}, B = {b}, N = {n}; the ratio "
        "of sums over documents, value to best value.",
        f"Documents without gold labels: {empty}; {rule} the ranking means, kept in AUC and F1.",
        "Ties: equal scores rank by label id. A label that is not ranked counts below all that "
        "are. k larger than the ranking: missing places are wrong.",
        "macro F1: mean of the labels' F1 (scikit-learn). macro F1 (CAML): harmonic mean of macro "
        f"precision and macro recall. Over all {facts['labels']} labels, or over the "
        f"{facts['labels_present']} with gold in this split; 0/0 counts as 0.",
        f"macro AUC: mean over the {facts['labels_with_auc']} labels that are gold somewhere and "
        "not everywhere.",
        _retention(facts["retained"], facts["labels"], facts["candidates"]),
        "Bands: number of training documents of a label; unseen: labels without any that this "
        "split holds. R@k: share of the band's gold among the first k of the overall ranking. "
        "Within: the ranking restricted to the band's labels, over documents with gold in it; "
        "macro F1 over labels present.",
    ]
    if facts["ignored_pairs"]:
        lines.append(
            f"Filter file: the scores of {facts['ignored_pairs']} pairs of document and label were "
            "removed before ranking, and the pairs from the gold labels."
        )
    used = facts["thresholds"]
    if used:
        lines.append(
            f"Thresholds: rule {used['rule']}, tuned on validation: score {used['global']:.6g}; "
            f"{used['labels_with_own']} labels with their own; top k {used['top_k']}. "
            f"{used['documents_at_limit']} documents chose all that was retained of them."
            + (" Scores here are calibrated." if used["calibrated"] else "")
        )
    return lines


def _retention(retained: int, labels: int, candidates: int) -> str:
    kept = f"Retained: each document's best {retained} of {labels} labels"
    ranks = f"MAP and R-precision use exact ranks among {candidates} candidates"
    if retained == labels:
        return f"{kept}, that is all; AUC is exact. {ranks}."
    return f"{kept}; in AUC the rest count as tied below them. {ranks}."


def _facts(results: Results) -> str:
    facts = results.definitions
    return (
        f"{facts['documents']:,} documents, {facts['labels']:,} labels, "
        f"{facts['labels_present']:,} of them present."
    )


def _cut_offs(results: Results) -> list[str]:
    return [name.partition("@")[2] for name in results.metrics if name.startswith("p@")]


def _summary_metrics(results: Results) -> list[str]:
    ks = _cut_offs(results)
    metrics = [f"p@{k}" for k in ks] + [f"{name}@{ks[-1]}" for name in ("r", "ndcg")]
    # Propensity-scored metrics are customarily given at the first few cut-offs.
    metrics += [f"{name}@{k}" for name in ("psp", "psndcg") for k in dict.fromkeys(ks[:3])]
    metrics += [name for name in _NAMES if name in results.metrics]
    return metrics


def _cut_off_table(results: Results) -> str:
    ks = _cut_offs(results)
    rows = [
        [_NAMES[family], *(_percent(results.metrics[f"{family}@{k}"]) for k in ks)]
        for family in _FAMILIES
    ]
    return markdown_table(["k", *ks], rows)


def _decision_table(results: Results) -> str:
    columns = (
        "micro_precision", "micro_recall", "micro_f1", "macro_f1", "macro_f1_caml",
        "macro_f1_present", "macro_f1_caml_present",
    )  # fmt: skip
    rows = [
        [_RULES[rule], *(_percent(scores[column]) for column in columns)]
        for rule, scores in results.decisions.items()
    ]
    return markdown_table(["rule", *map(title, columns)], rows)


def _fits(reliability: CalibrationReport) -> str:
    if reliability.after is None:
        return "Scores are not calibrated (`evaluate.calibration`)."
    fits = "; ".join(
        f"{one['band']}: "
        + (f"T = {one['temperature']:.3g}" if "temperature" in one else f"{one['pairs']:,} pairs")
        + ("" if one["own"] else f", as all labels ({one['positives']} positives)")
        for one in reliability.fits
    )
    return (
        f"Scores are calibrated ({reliability.kind}), fitted on validation by number of training "
        f"documents of the label: {fits}. Rankings are of the model's own scores."
    )


def _reliability_table(reliability: CalibrationReport) -> str:
    """Expected calibration error and log loss of each scope, before and after."""
    stages = {"before": reliability.before, "after": reliability.after or {}}
    columns = [f"{what} {when}" for what in ("ECE", "log loss") for when in stages]
    rows = []
    for scope, one in reliability.before.items():
        # A scope that is there before is there after: calibration takes away no prediction.
        found = [stage.get(scope) for stage in stages.values()]
        errors = [_NOTHING if each is None else _percent(each.ece) for each in found]
        losses = [_NOTHING if each is None else f"{each.log_loss:.4f}" for each in found]
        right = one.hits.sum() / one.predictions
        rows.append([scope, f"{one.predictions:,}", _percent(float(right)), *errors, *losses])
    table = markdown_table(["pairs", "predictions", "right", *columns], rows)
    return f"{table}\n\nExpected calibration error (percent) and log loss (nats) over {SCOPES}."


def _band_table(results: Results) -> str:
    ks = _cut_offs(results)
    # A table of every cut-off by every band would not fit a page; report.json has them all.
    middle, last = ks[len(ks) // 2], ks[-1]
    columns = {
        f"r@{last}": f"R@{last}",
        f"within_p@{ks[0]}": f"within P@{ks[0]}",
        f"within_ndcg@{middle}": f"within nDCG@{middle}",
        "within_map": "within MAP",
        "macro_auc": "macro AUC",
    }
    if results.decisions:
        columns |= {name: _NAMES[name] for name in ("micro_f1", "macro_f1", "macro_f1_caml")}
    counts: dict[str, Callable[[BandResult], int]] = {
        "labels": lambda band: band.labels,
        "present": lambda band: band.labels_present,
        "gold": lambda band: band.gold,
        "documents": lambda band: band.documents,
    }
    rows = [
        [
            band.name,
            *(f"{count(band):,}" for count in counts.values()),
            *(_percent(band.metrics[column]) for column in columns),
        ]
        for band in results.bands
    ]
    return markdown_table(["training documents", *counts, *columns.values()], rows)


def _recall_table(systems: Mapping[str, Results]) -> str:
    last = _cut_offs(next(iter(systems.values())))[-1]
    # Every system has the same bands: they come from the training split.
    by_system = [
        {band.name: band.metrics[f"r@{last}"] for band in one.bands} for one in systems.values()
    ]
    rows = [[name, *(_percent(one[name]) for one in by_system)] for name in by_system[0]]
    return markdown_table([f"R@{last}, training documents", *systems], rows)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    # Names on the left, figures on the right, so that digits stand under digits.
    rule = [":--", *["--:"] * (len(header) - 1)]
    return "\n".join(
        # A bar in a system's name would start another cell.
        "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
        for row in (header, rule, *rows)
    )


def _percent(fraction: float) -> str:
    return _NOTHING if math.isnan(fraction) else f"{100 * fraction:.2f}"
