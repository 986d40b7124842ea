"""Settings of the label rows: which engine keeps them, and what moves them.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.settings import Section, setting
from plant_dist.errors import ConfigError


@dataclass(frozen=True)
class LabelsConfig(Section):
    """The rows of label parameters."""

    # Inert: engines give the same rows, up to rounding.
    engine: str = setting(
        "auto",
        "Where rows live: whole on every process, or spread over them (TorchRec); auto spreads "
        "what does not fit into memory_gb.",
        choices=("auto", "replicated", "sharded"), inert=True,
    )  # fmt: skip
    optimizer: str = setting(
        "auto",
        "What moves rows: adamw moves all at every step; adagrad (row-wise) and lazy_adam move "
        "those that the step touched. Auto takes adamw where training scores all labels on whole "
        "rows, else adagrad.",
        choices=("auto", "adamw", "adagrad", "lazy_adam"),
    )
    eps: float = setting(1e-8, "ε of adagrad and lazy_adam.", above=0.0)
    memory_gb: float | None = setting(
        None, "Memory (10⁹ bytes) per process for whole rows with their optimizer; half of what is "
        "free if unset.", above=0.0, inert=True,
    )  # fmt: skip
    placement: str = setting(
        "device",
        "Sharded rows on GPUs: in their memory, in the host's (uvm), or there with a cache.",
        choices=("device", "uvm", "uvm_caching"), inert=True,
    )  # fmt: skip
    cache_share: float = setting(
        0.2, "Share of rows that a GPU caches, with uvm_caching.", above=0.0, maximum=1.0,
        inert=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.engine == "sharded" and self.optimizer == "adamw":
            raise ConfigError(
                "labels.optimizer is adamw, which moves every row at every step, but labels.engine "
                "is sharded; set labels.optimizer=adagrad"
            )
