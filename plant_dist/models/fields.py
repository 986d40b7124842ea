"""What the decoder asks of a label table: its fields, and how their rows are read.

Must not know where rows live or what is done with them.

Shapes: B documents, K labels considered, n labels of a block.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from plant_dist.config.schema import ModelConfig
from plant_dist.errors import ConfigError

# Planted and then left alone: what a label is called and whether it was seen is not learnt.
FROZEN_FIELDS = ("name", "prior", "alone")


class LabelRows(Protocol):
    """What the decoder asks of a label table: a replicated one, or one sharded over ranks."""

    count: int

    def block(self, start: int, stop: int) -> dict[str, Tensor]:
        """Rows of consecutive labels, each field (n, width)."""

    def rows(self, label_ids_BK: Tensor) -> dict[str, Tensor]:
        """Rows of given labels, each field (B, K, width)."""


def label_fields(config: ModelConfig, width: int, ranker_width: int | None) -> dict[str, int]:
    """Fields that the decoder reads from a label table, with their widths, in fixed order.

    Args:
        config: branches and gates.
        width: encoder width D.
        ranker_width: width R of the planted ranker's factors; None without the planted branch.

    Raises:
        ConfigError: the planted branch is asked for without a ranker's width.
    """
    fields = {"boost": width, "bias": 1}
    if "learned" in config.branches:
        fields["query"] = width
    if "planted" in config.branches:
        if ranker_width is None:
            raise ConfigError("model.branches names planted, but no ranker is given; run `rank`")
        fields["factor"] = ranker_width
    if "named" in config.branches:
        fields |= {"name": width, "prior": 1, "alone": 1}
    if config.gates == "learned":
        fields["gate"] = len(config.branches)
    return fields
