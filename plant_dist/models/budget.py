"""How many labels the decoder attends at once, and whether it computes blocks again going back.

A block's arrays grow with labels and tokens, so a document's length decides how many labels fit
into `model.block_memory_mb`. Must not know what the numbers are for.

Shapes: T tokens, D encoder width, k tokens kept.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from plant_dist.config.schema import ModelConfig
from plant_dist.models.segments import Segment

_MIB = 2**20


class BlockBudget:
    """The memory of one block of labels.

    Args:
        config: the `model` section.
        kept: tokens that each branch keeps, in the config's order; None keeps all.
    """

    def __init__(self, config: ModelConfig, kept: Mapping[str, int | None]) -> None:
        # A pooled segment is one token.
        self._kept = {branch: k for branch, k in kept.items() if branch != "pooled"}
        self._config = config

    def labels(self, segment: Segment, short: bool) -> int:
        """Labels per block: as configured, or what the memory budget holds.

        Args: short: whether the segment is read densely.
        """
        if self._config.label_block is not None:
            return self._config.label_block
        scratch, _ = self._floats_per_label(segment, short)
        # A bag alone attends nothing and takes no scratch.
        return max(1, self._floats(segment) // max(1, scratch))

    def recomputes(self, segment: Segment, short: bool, labels: int, segments: int = 1) -> bool:
        """Whether what all blocks leave for the backward pass is above one block's budget."""
        _, surviving = self._floats_per_label(segment, short)
        # All labels, not one block: each block's share waits for the backward pass.
        held = surviving * labels * segments
        return torch.is_grad_enabled() and held > self._floats(segment)

    def _floats(self, segment: Segment) -> int:
        """Numbers per document that fit into the budget of one block."""
        bytes_each = torch.promote_types(segment.hidden.dtype, torch.float32).itemsize
        return self._config.block_memory_mb * _MIB // (bytes_each * len(segment.hidden))

    def _floats_per_label(self, segment: Segment, short: bool) -> tuple[int, int]:
        """Numbers per document and label: live while a block is read, and left for backward.

        Counted from the code: choosing the k best holds the scores and topk's copy of them; a
        full branch also holds its weights and values; kept tokens hold scores, values, weights
        and their positions.
        """
        tokens, width = segment.hidden.shape[1:]
        if short:
            return 9 * tokens * len(self._kept), 6 * tokens * len(self._kept)
        scratch, surviving = width, width
        for branch, k in self._kept.items():
            # The static branch lists hits and never scores every token.
            if branch != "static":
                scratch += 2 * tokens if k is not None else 6 * tokens
            surviving += 8 * min(k, tokens) if k is not None else 0
            # The fused kernel holds no attention weights.
            fused = branch == "learned" and self._config.state != "attention_state"
            surviving += 4 * tokens if k is None and not fused else 0
        return scratch + surviving, surviving
