"""Settings of a sweep: one config that stands for many runs.

A part of the schema in a file of its own; `schema` offers this section with all others. Nothing
here changes what a run computes: each run of a sweep is a plain run with a few settings more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from plant_dist.config.settings import Section, setting
from plant_dist.errors import ConfigError

# A variant's name is a part of a folder's name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class SweepConfig(Section):
    """Runs of `plant-dist sweep`: every variant on every size of the training split and seed."""

    train_documents: tuple[int, ...] = setting(
        (), "Sizes of the training split, each drawn inside the larger ones.", minimum=1, inert=True
    )
    all_documents: bool = setting(True, "All training documents too, as the last size.", inert=True)
    seeds: tuple[int, ...] = setting(
        (0,), "Seeds; one draws documents, starts and orders.", minimum=0, least=1, inert=True
    )
    variants: dict[str, Any] = setting(
        {}, "Name → settings such as {model.branches: [planted]}; the config as it is if unset.",
        inert=True,
    )  # fmt: skip
    metrics: tuple[str, ...] = setting(
        ("p@1", "p@5", "ndcg@5", "psp@5", "map", "micro_f1", "macro_f1_present"),
        "Metrics of the sweep's table, those of a report.", least=1, inert=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, content in self.variants.items():
            if not _NAME.fullmatch(str(name)):
                raise ConfigError(
                    f"sweep.variants.{name}: a name becomes a folder; use letters, digits, dots, "
                    "hyphens"
                )
            if not isinstance(content, Mapping):
                raise ConfigError(
                    f"sweep.variants.{name} is {content!r}; give a mapping such as "
                    "{model.branches: [planted]}"
                )
        for name in ("train_documents", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ConfigError(f"sweep.{name} is {list(values)}; name each of its entries once")
