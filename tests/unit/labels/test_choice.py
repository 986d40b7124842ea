"""Engines and optimizers chosen by memory and settings, and what they are said to take."""

from __future__ import annotations

import pytest

from plant_dist.config.schema import LabelsConfig
from plant_dist.errors import ConfigError
from plant_dist.labels.choice import plan_rows

WIDTHS = {"query": 256, "factor": 256, "bias": 1}
GB = 1e9


@pytest.mark.parametrize(
    ("settings", "world", "shortlisted", "engine", "optimizer"),
    [
        ({}, 1, False, "replicated", "adamw"),
        ({}, 1, True, "replicated", "adagrad"),
        ({}, 8, False, "sharded", "adagrad"),
        ({"memory_gb": 100.0}, 8, True, "replicated", "adagrad"),
        ({"memory_gb": 2.0}, 8, True, "sharded", "adagrad"),
        ({"optimizer": "adamw"}, 8, False, "replicated", "adamw"),
        ({"optimizer": "lazy_adam"}, 1, True, "replicated", "lazy_adam"),
        ({"engine": "sharded"}, 1, False, "sharded", "adagrad"),
        ({"engine": "replicated"}, 8, True, "replicated", "adagrad"),
    ],
)
def test_engine_and_optimizer(
    settings: dict[str, object], world: int, shortlisted: bool, engine: str, optimizer: str
) -> None:
    # A million rows of 513 numbers: 2.05 GB, of which 4 GB free allow 2.
    plan = plan_rows(LabelsConfig(**settings), 1_000_000, WIDTHS, world, 4 * GB, shortlisted)
    assert (plan.engine, plan.optimizer) == (engine, optimizer)


def test_bytes_are_those_of_the_tensors() -> None:
    def plan(**settings: object) -> tuple[int, int]:
        made = plan_rows(LabelsConfig(**settings), 1000, WIDTHS, 3, 1e12, shortlisted=True)
        return made.rows_bytes, made.state_bytes

    assert plan() == (1000 * 513 * 4, 1000 * 3 * 4)
    assert plan(optimizer="lazy_adam") == (1000 * 513 * 4, 2 * 1000 * 513 * 4)
    # The fullest of three ranks owns 334 labels.
    assert plan(engine="sharded") == (334 * 513 * 4, 334 * 3 * 4)


def test_the_plan_says_its_memory() -> None:
    plan = plan_rows(LabelsConfig(), 2**20, {"query": 256}, 1, 1e12, shortlisted=True)
    assert str(plan) == (
        "replicated (adagrad), 1,048,576 rows of 256 numbers: 1.00 GiB of rows and 0.00 GiB of "
        "optimizer a process"
    )


def test_adamw_wants_whole_rows() -> None:
    with pytest.raises(ConfigError, match=r"set labels\.optimizer=adagrad"):
        LabelsConfig(engine="sharded", optimizer="adamw")
