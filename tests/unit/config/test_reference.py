from dataclasses import fields

import pytest

from plant_dist.config.reference import key_reference
from plant_dist.config.schema import Config, LossConfig, OptimConfig
from plant_dist.config.settings import Section


def every_key(kind: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for entry in fields(kind):
        default = getattr(kind(), entry.name)
        inner = f"{prefix}{entry.name}"
        keys += every_key(type(default), f"{inner}.") if isinstance(default, Section) else [inner]
    return keys


def test_every_key_has_a_row_with_default_and_meaning() -> None:
    rows = [line for line in key_reference().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == every_key(Config)
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows)


@pytest.mark.parametrize(
    "row",
    [
        "| `seed` | int | `0` | Seed of every random choice. (at least 0) |",
        "| `train.optim.learning_rate` | float | `0.001` | Peak rate of the decoder's label rows. "
        "(above 0) |",
        "| `evaluate.ks` | list[int] | `[1, 3, 5, 8, 10, 15]` | Cut-offs of the ranking metrics. "
        "(at least 1) |",
    ],
)
def test_a_row(row: str) -> None:
    assert row in key_reference().splitlines()


def test_every_setting_of_a_nested_section_is_named_with_its_whole_key() -> None:
    # Errors and the reference must give a key that `--set` accepts.
    for kind in (LossConfig, OptimConfig):
        assert kind.inside == "train"
