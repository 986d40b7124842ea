"""Figures that others have published, as a config states them for `evaluate` to print.

A table of systems, each with its source and its metrics in percent, as papers print them:

    published:
      AttentionXML:
        source: You et al., NeurIPS 2019, table 2
        metrics: {p@1: 87.12, p@3: 73.99}
        checked: false      # nobody of us has held them against the source; true if unset

Knows how a metric is named, not how it is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plant_dist.errors import ConfigError

_AT_K = re.compile(r"(p|r|ndcg|psp|psr|psndcg)@[1-9][0-9]*")
WHOLE = (
    "map", "r_precision", "micro_auc", "macro_auc", "micro_precision", "micro_recall", "micro_f1",
    "macro_precision", "macro_recall", "macro_f1", "macro_f1_caml", "macro_f1_present",
    "macro_f1_caml_present",
)  # fmt: skip


@dataclass(frozen=True)
class PublishedFigures:
    """What one system is said to reach.

    source: where that is printed. metrics: fractions in 0..1, named as in a report.
    checked: somebody of this project has held them against a print of the source.
    """

    system: str
    source: str
    metrics: dict[str, float]
    checked: bool = True

    @property
    def origin(self) -> str:
        """The source, and whether it was looked up, for a person."""
        return self.source if self.checked else f"{self.source} (not checked)"


def published_figures(table: Mapping[str, Any]) -> tuple[PublishedFigures, ...]:
    """Read the table of `evaluate.published`.

    Raises:
        ConfigError: a system has no source or no metrics, a metric is unknown, or a figure is no
            percentage.
    """
    return tuple(_system(str(name), content) for name, content in table.items())


def _system(name: str, content: Any) -> PublishedFigures:
    where = f"evaluate.published.{name}"
    if not isinstance(content, Mapping) or set(content) - {"checked"} != {"source", "metrics"}:
        raise ConfigError(f"{where} must hold `source` and `metrics`, found {str(content)[:80]}")
    source, metrics, checked = content["source"], content["metrics"], content.get("checked", True)
    if not isinstance(checked, bool):
        raise ConfigError(f"{where}.checked is {checked!r}; it must be true or false")
    # A figure that nobody can look up is worth nothing beside a result.
    if not isinstance(source, str) or not source.strip():
        raise ConfigError(f"{where}.source is {source!r}; say where the figures are printed")
    if not isinstance(metrics, Mapping) or not metrics:
        raise ConfigError(f"{where}.metrics must name at least one metric, such as p@1: 87.1")
    return PublishedFigures(
        name, source, {str(key): _fraction(f"{where}.metrics.{key}", key, value)
                       for key, value in metrics.items()}, checked,
    )  # fmt: skip


def _fraction(where: str, metric: Any, value: Any) -> float:
    if not isinstance(metric, str) or not (metric in WHOLE or _AT_K.fullmatch(metric)):
        raise ConfigError(f"{where} is no metric of a report; p@5, psp@1, map or micro_f1 are")
    # A bool is an int in Python; NaN fails both comparisons.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ConfigError(f"{where} is {value!r}; give a percentage, 0 to 100")
    return value / 100
