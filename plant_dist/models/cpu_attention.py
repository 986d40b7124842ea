"""Attention inside encoders that learn on a CPU: computed in float32, though products are in bf16.

torch's fused attention has one backward pass for CPUs, and in half precision it forgoes the
processor's own bf16 products: more than 3 times slower than in float32 with texts of 128 tokens,
and a third of what training MiniLM takes (docs/findings/machines.md). On other devices, and where
no gradient runs, nothing changes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_float32_on_cpu"


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    **settings: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """Attend as transformers' own `sdpa` does; in float32 where a CPU will go backward.

    Args:
        module: the attention block that asks.
        query, key, value: (B, heads, T, width), of one dtype.
        attention_mask: broadcasts to (B, heads, T, T); bool, or added to products.

    Returns: (B, T, heads, width) in the dtype of `query`, and no attention weights.
    """
    given = query.dtype
    if query.device.type != "cpu" or given == torch.float32 or not query.requires_grad:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    # Autocast would turn it back.
    with torch.autocast("cpu", enabled=False):
        attended, _ = sdpa_attention_forward(
            module, query.float(), key.float(), value.float(), attention_mask, **settings
        )
    return attended.to(given), None


def learn_in_float32(model: PreTrainedModel) -> None:
    """Let a model's blocks attend by `attend`, where they would by `sdpa`."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    # ModernBERT of transformers 5.0 says "sdpa" as well, but cannot be told otherwise.
    if model.config._attn_implementation == "sdpa" and model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
