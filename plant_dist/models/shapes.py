"""How large an encoder is, known without its weights: from its architecture alone.

The architecture comes from the model's folder or the local cache, or, for the encoders that our
configs name, from the table below, so that a plan can be made before anything is fetched. The
model is made on torch's meta device, where tensors have shapes and no memory. Must not know labels,
batches or devices.

T tokens, n_in and n_out widths of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from plant_dist.config.schema import EncoderConfig
from plant_dist.data.tokens import locate_pretrained
from plant_dist.errors import ConfigError
from plant_dist.models import lstm
from plant_dist.models.adapters import adapter_settings, add_adapters
from plant_dist.models.encoder import (
    SegmentEncoder,
    check_positions,
    encoder_from_config,
    transformer_blocks,
)

# What differs from the defaults of transformers for that kind of model.
_ROBERTA = {"max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1}
_LONGFORMER = _ROBERTA | {"vocab_size": 50265, "max_position_embeddings": 4098}
KNOWN: dict[str, tuple[str, Mapping[str, Any]]] = {
    "google-bert/bert-base-uncased": ("bert", {}),
    "FacebookAI/roberta-base": ("roberta", {"vocab_size": 50265, **_ROBERTA}),
    "FacebookAI/xlm-roberta-base": ("xlm-roberta", {"vocab_size": 250002, **_ROBERTA}),
    "allenai/longformer-base-4096": ("longformer", _LONGFORMER),
    "yikuan8/Clinical-Longformer": ("longformer", _LONGFORMER),
    "emilyalsentzer/Bio_ClinicalBERT": ("bert", {"vocab_size": 28996}),
    "answerdotai/ModernBERT-base": ("modernbert", {}),
    # Trained on from the one above.
    "thomas-sounack/BioClinical-ModernBERT-base": ("modernbert", {}),
    "mistralai/Mistral-7B-v0.3": ("mistral", {"vocab_size": 32768}),
}

# Numbers kept for the backward pass over n_in + n_out of all layers, measured on BERT, ModernBERT,
# Llama and Mistral: 1.1 to 1.45 (tests/unit/models/test_shapes.py).
KEPT_SHARE = 1.3
# Bytes of such a number, by precision: under autocast norms and sums of residuals stay in fp32, so
# that halves were measured to take 2.2 to 3.3 (same test).
KEPT_BYTES = {"fp32": 4.0, "bf16": 2.8, "fp16": 2.8}


@dataclass(frozen=True)
class EncoderShape:
    """Sizes of an encoder, in numbers (not bytes).

    Attributes:
        width: D. vocabulary: token ids.
        parameters: all, adapters included. trained: those that learn.
        blocks: repeated blocks.
        kept: what all blocks keep of a token for the backward pass (an estimate).
    """

    width: int
    vocabulary: int
    parameters: int
    trained: int
    blocks: int
    kept: int

    def activations(self, recompute: bool) -> int:
        """Return the numbers held for each token while training.

        Args: recompute: blocks keep their inputs only, and are computed again one by one.
        """
        if not recompute or self.blocks == 0:
            return self.kept
        return self.blocks * self.width + self.kept // self.blocks


def architecture(name: str) -> PretrainedConfig:
    """Return an encoder's architecture, never from the net.

    Raises:
        ConfigError: it is neither on this machine nor known by name.
    """
    lstm.register()
    try:
        found: PretrainedConfig = AutoConfig.from_pretrained(
            locate_pretrained(name), local_files_only=True
        )
    except (OSError, ValueError):
        if name not in KNOWN:
            raise ConfigError(
                f"{name} is not on this machine and its architecture not known; set encoder.name "
                "to a folder, or fetch it with encoder.allow_download=true"
            ) from None
        kind, settings = KNOWN[name]
        found = AutoConfig.for_model(kind, **settings)
    return found


def encoder_shape(config: EncoderConfig) -> EncoderShape:
    """Return the sizes of the encoder that a configuration names, with its adapters.

    Raises:
        ConfigError: as `architecture`, or it has no layers for adapters.
        RuntimeSetupError: adapters are asked for and peft is not installed.
    """
    return shape_of(_without_weights(config))


def check_encoder(config: EncoderConfig, segment_tokens: int) -> None:
    """Check what loading an encoder would refuse, as far as its architecture tells.

    Nothing is said of an encoder that is neither on this machine nor known: loading it does.

    Args: segment_tokens: longest segment, special tokens included.

    Raises:
        ConfigError: segments are longer than it reads, or it has no layers for adapters.
        RuntimeSetupError: adapters are asked for and peft is not installed.
    """
    try:
        architecture(config.name)
    except ConfigError:
        return
    check_positions(_without_weights(config), segment_tokens)


def _without_weights(config: EncoderConfig) -> PreTrainedModel:
    """Return the encoder with its adapters on the meta device."""
    with torch.device("meta"):
        # Inside the wrapper, since that freezes what no text reaches.
        backbone = SegmentEncoder(encoder_from_config(architecture(config.name))).backbone
        adapters = adapter_settings(config)
        if adapters is not None:
            add_adapters(backbone, adapters)
    return backbone


def shape_of(backbone: nn.Module) -> EncoderShape:
    """Return the sizes of a model, which may be on the meta device."""
    parameters = list(backbone.parameters())
    table = backbone.get_input_embeddings().weight  # type: ignore[operator]
    return EncoderShape(
        width=int(backbone.config.hidden_size),  # type: ignore[arg-type,union-attr]
        vocabulary=len(table),
        parameters=sum(one.numel() for one in parameters),
        trained=sum(one.numel() for one in parameters if one.requires_grad),
        blocks=len(transformer_blocks(backbone)),
        kept=_kept_numbers(backbone),
    )


def _kept_numbers(backbone: nn.Module) -> int:
    tables = [m for m in backbone.modules() if isinstance(m, nn.Embedding)]
    looked_up = {id(parameter) for table in tables for parameter in table.parameters()}
    # A matrix n_out × n_in stands for a layer that reads n_in numbers a token and gives n_out.
    layers = [p for p in backbone.parameters() if p.dim() == 2 and id(p) not in looked_up]
    return round(KEPT_SHARE * sum(sum(matrix.shape) for matrix in layers))
