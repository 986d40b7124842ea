"""Settings of the label rows: which engine keeps them, and what moves them.

A part of the schema in a file of its own; `schema` offers this section with all others.
"""

from __future__ import annotations

from dataclasses import dataclass

from plant_dist.config.settings import Section, setting
from plant_dist.config.training import TrainConfig
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

    def optimizer_on(self, engine: str, shortlisted: bool) -> str:
        """Return what moves rows on an engine; `shortlisted`: a step considers a shortlist."""
        if self.optimizer != "auto":
            return self.optimizer
        return "adagrad" if shortlisted or engine == "sharded" else "adamw"


def check_rows(engine: str, optimizer: str, state: str, train: TrainConfig, precision: str) -> None:
    """Check settings that rows spread out, or touched one by one, cannot follow.

    Args: engine, optimizer: of the rows; the optimizer is not auto. state: `model.state`.

    Raises:
        ConfigError: there is one; names it.
    """
    if engine == "sharded" and state == "logit_state":
        raise ConfigError(
            "model.state is logit_state, which carries the best of all labels, but label rows are "
            "sharded; set model.state=attention_state, or labels.engine=replicated"
        )
    if optimizer == "adamw":
        return
    for name, value, wanted in (
        ("train.ema_decay", train.ema_decay, None),
        ("train.optim.rows_weight_decay", train.optim.rows_weight_decay, 0.0),
    ):
        if value != wanted:
            raise ConfigError(
                f"{name} is {value}, which moves every row at every step, but labels.optimizer is "
                f"{optimizer}; unset it, or set labels.optimizer=adamw"
            )
    if precision == "fp16":
        raise ConfigError(
            f"runtime.precision is fp16, whose loss scale labels.optimizer={optimizer} does not "
            "know; set runtime.precision=bf16"
        )
