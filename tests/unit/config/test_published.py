"""Published figures: what a config may say of others' results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from plant_dist.config import load_config
from plant_dist.config.published import WHOLE, PublishedFigures, published_figures
from plant_dist.config.schema import EvaluateConfig
from plant_dist.errors import ConfigError

ROOT = Path(__file__).parents[3]


def system(**metrics: Any) -> dict[str, Any]:
    return {"A": {"source": "somebody, somewhere, table 2", "metrics": metrics}}


def test_percentages_become_fractions_in_order() -> None:
    table = {
        "B": {"source": "b", "metrics": {"p@1": 87.12, "psndcg@10": 0}},
        "A": {"source": "a", "metrics": {"map": 100}},
    }
    assert published_figures(table) == (
        PublishedFigures("B", "b", {"p@1": pytest.approx(0.8712), "psndcg@10": 0.0}),
        PublishedFigures("A", "a", {"map": 1.0}),
    )


@pytest.mark.parametrize("value", [-0.1, 100.1, "87", True, None, float("nan"), [1]])
def test_a_figure_is_a_percentage(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"evaluate\.published\.A\.metrics\.map is .*0 to 100"):
        published_figures(system(map=value))


@pytest.mark.parametrize("metric", ["P@1", "p@0", "p@", "p@1.5", "accuracy", "p@5 ", 5])
def test_a_metric_is_one_of_a_report(metric: Any) -> None:
    with pytest.raises(ConfigError, match="is no metric of a report"):
        published_figures({"A": {"source": "s", "metrics": {metric: 50.0}}})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"metrics": {"map": 1}}, "must hold `source` and `metrics`"),
        ({"source": "s", "metrics": {"map": 1}, "note": ""}, "must hold `source` and `metrics`"),
        (87.1, "must hold `source` and `metrics`"),
        ({"source": " ", "metrics": {"map": 1}}, "say where the figures are printed"),
        ({"source": None, "metrics": {"map": 1}}, "say where the figures are printed"),
        ({"source": "s", "metrics": {}}, "at least one metric"),
        ({"source": "s", "metrics": [1]}, "at least one metric"),
        ({"source": "s", "metrics": {"map": 1}, "checked": "no"}, "it must be true or false"),
    ],
)
def test_a_figure_nobody_can_look_up_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(published={"A": content})


def test_figures_that_nobody_looked_up_say_so() -> None:
    table = system(map=1)
    assert published_figures(table)[0].origin == "somebody, somewhere, table 2"
    table["A"]["checked"] = False
    assert published_figures(table)[0].origin == "somebody, somewhere, table 2 (not checked)"


def test_metrics_may_be_set_by_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump({"evaluate": {"published": system(map=10)}}))
    config = load_config(path, ["evaluate.published.A.metrics.map=20"])
    assert published_figures(config.evaluate.published)[0].metrics == {"map": 0.2}


def test_every_name_is_one_that_reports_use() -> None:
    """Against the code that makes reports, so that no published figure stands beside a blank."""
    source = "".join(path.read_text() for path in (ROOT / "plant_dist/metrics").glob("*.py"))
    for name in WHOLE:
        assert f'"{name}"' in source or f'"{name.removesuffix("_present")}' in source, name


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_published_cut_offs_are_measured(path: Path) -> None:
    evaluate = load_config(path).evaluate
    for one in published_figures(evaluate.published):
        cut_offs = {int(name.split("@")[1]) for name in one.metrics if "@" in name}
        assert cut_offs <= set(evaluate.ks)
        # Precision falls with k wherever labels are few; a slip of the pen shows here.
        precisions = [one.metrics[f"p@{k}"] for k in (1, 3, 5) if f"p@{k}" in one.metrics]
        assert precisions == sorted(precisions, reverse=True)
