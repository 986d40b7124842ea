"""How a run keeps its rows: what is refused, what is recorded, what is made."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from plant_dist.config.schema import Config, LabelsConfig, ModelConfig, RuntimeConfig, TrainConfig
from plant_dist.config.training import OptimConfig
from plant_dist.errors import ConfigError
from plant_dist.labels.replicated import ReplicatedRows
from plant_dist.labels.table import LabelTable
from plant_dist.labels.updates import LazyAdam
from plant_dist.runtime.context import RunContext
from plant_dist.stages import rows as stages_rows
from plant_dist.stages.rows import rows_maker, rows_settings

WIDTHS = {"boost": 8, "bias": 1}
SPARSE = LabelsConfig(optimizer="adagrad")
TWO = RunContext(world=2)


@pytest.fixture
def memory_spreads(monkeypatch: pytest.MonkeyPatch) -> LabelsConfig:
    """Settings under which two ranks spread rows out, since no memory holds them whole."""
    # There is no other rank here to share memory with, nor to tell.
    monkeypatch.setattr(stages_rows, "free_bytes", lambda context: 1e12)
    monkeypatch.setattr(stages_rows, "broadcast_object", lambda context, plan: plan)
    return LabelsConfig(memory_gb=1e-9)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"train": TrainConfig(ema_decay=0.9)}, "train.ema_decay is 0.9"),
        (
            {"train": TrainConfig(optim=OptimConfig(rows_weight_decay=0.1))},
            "train.optim.rows_weight_decay is 0.1",
        ),
        ({"runtime": RuntimeConfig(precision="fp16")}, "set runtime.precision"),
    ],
)
def test_settings_that_touched_rows_cannot_follow_are_refused(
    settings: dict[str, Any], named: str, memory_spreads: LabelsConfig
) -> None:
    # By the settings alone, before anything runs: asked for, or since steps are shortlisted.
    with pytest.raises(ConfigError, match=named):
        Config(labels=SPARSE, **settings)
    train = replace(settings.get("train", TrainConfig()), labels="shortlist")
    with pytest.raises(ConfigError, match=named):
        Config(**settings | {"train": train})
    # When memory has chosen the engine.
    config = Config(labels=memory_spreads, **settings)
    with pytest.raises(ConfigError, match=named):
        rows_maker(config, TWO)(4, WIDTHS, ())


def test_rows_spread_out_carry_no_logits(memory_spreads: LabelsConfig) -> None:
    carried = ModelConfig(state="logit_state")
    with pytest.raises(ConfigError, match=r"set model.state=attention_state"):
        Config(labels=LabelsConfig(engine="sharded"), model=carried)
    config = Config(labels=memory_spreads, model=carried)
    with pytest.raises(ConfigError, match=r"set model.state=attention_state"):
        rows_maker(config, TWO)(4, WIDTHS, ())


def test_the_table_is_the_one_asked_for_and_said(caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("plant_dist").propagate = True
    with caplog.at_level(logging.INFO):
        assert type(rows_maker(Config(), RunContext())(4, WIDTHS, ())) is LabelTable
        assert "label rows: replicated (adamw), 4 rows of 9 numbers" in caplog.text
    betas = OptimConfig(betas=(0.8, 0.9))
    config = Config(labels=LabelsConfig(optimizer="lazy_adam"), train=TrainConfig(optim=betas))
    rows = rows_maker(config, RunContext())(4, WIDTHS, ())
    assert isinstance(rows, ReplicatedRows)
    assert rows.optimizer == LazyAdam((0.8, 0.9), 1e-8)


def test_only_what_decides_results_is_recorded_and_only_where_it_is_set() -> None:
    assert rows_settings(Config()) == {}
    # Engines give the same rows.
    assert rows_settings(Config(labels=LabelsConfig(engine="sharded", memory_gb=3.0))) == {}
    recorded = rows_settings(Config(labels=SPARSE))["labels"]
    assert recorded == {"optimizer": "adagrad", "eps": 1e-8}
