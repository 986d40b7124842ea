"""The fields that the decoder reads from a label table.

Must not know where rows live or what is done with them.
"""

from __future__ import annotations

from plant_dist.config.schema import ModelConfig
from plant_dist.errors import ConfigError


def boosted_branches(config: ModelConfig) -> tuple[str, ...]:
    """Branches whose evidence is a boost on attended states; names and bags need none."""
    return tuple(branch for branch in config.branches if branch not in ("named", "bag"))


def label_fields(config: ModelConfig, width: int, ranker_width: int | None) -> dict[str, int]:
    """Fields that the decoder reads from a label table, with their widths, in fixed order.

    Args:
        config: branches and gates.
        width: encoder width D.
        ranker_width: width R of the planted ranker's factors; None without the planted branch.

    Raises:
        ConfigError: the planted branch is asked for without a ranker's width.
    """
    # A row that nothing reads would never get a gradient, for which DistributedDataParallel waits.
    fields = {"boost": width} if boosted_branches(config) else {}
    fields["bias"] = 1
    if "learned" in config.branches:
        fields["query"] = width
    if "planted" in config.branches:
        if ranker_width is None:
            raise ConfigError("model.branches names planted, but no ranker is given; run `rank`")
        fields["factor"] = ranker_width
    if "named" in config.branches:
        fields |= {"name": width, "prior": 1, "alone": 1}
    if "bag" in config.branches:
        fields["bag"] = config.bag_width
    if config.gates == "learned":
        fields["gate"] = len(config.branches)
    return fields
