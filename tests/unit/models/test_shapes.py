"""Sizes of encoders against published counts, and activations against what a step really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel

from plant_dist.config.schema import EncoderConfig
from plant_dist.errors import ConfigError
from plant_dist.models.shapes import KEPT_BYTES, KNOWN, encoder_shape, shape_of

# From the models' own pages and papers; poolers (D² + D) and language-model heads taken off.
PUBLISHED = {
    "google-bert/bert-base-uncased": 109_482_240 - 768 * 769,
    "FacebookAI/roberta-base": 124_645_632 - 768 * 769,
    "FacebookAI/xlm-roberta-base": 278_043_648 - 768 * 769,
    "mistralai/Mistral-7B-v0.3": 7_248_023_552 - 32768 * 4096,
}
SMALL = {
    "vocab_size": 500, "hidden_size": 128, "num_attention_heads": 4, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_is_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that holds no model: only the table of architectures answers."""

    def absent(*_: Any, **__: Any) -> None:
        raise OSError("not here")

    monkeypatch.setattr("plant_dist.models.shapes.AutoConfig.from_pretrained", absent)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    shape = encoder_shape(EncoderConfig(name=name))
    assert shape.parameters == shape.trained == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(set(KNOWN) - set(PUBLISHED)))
def test_every_known_encoder_can_be_made(name: str) -> None:
    shape = encoder_shape(EncoderConfig(name=name))
    assert (shape.width, shape.blocks > 11) == (768, True)
    assert 1e8 < shape.parameters < 1.6e8


def test_global_attention_of_longformer_does_not_train() -> None:
    shape = encoder_shape(EncoderConfig(name="allenai/longformer-base-4096"))
    # Three projections of 768 by 768 and their biases, in each of twelve blocks.
    assert shape.parameters - shape.trained == 12 * 3 * (768 * 768 + 768)


def test_adapters_are_counted_and_alone_train() -> None:
    pytest.importorskip("peft")
    plain = encoder_shape(EncoderConfig(name="google-bert/bert-base-uncased"))
    adapted = encoder_shape(EncoderConfig(name="google-bert/bert-base-uncased", lora_rank=4))
    # Query, key, value, output: 768 + 768 each; up and down: 768 + 3072 each.
    adapters = 12 * 4 * (4 * (768 + 768) + 2 * (768 + 3072))
    assert adapted.trained == adapters
    assert adapted.parameters == plain.parameters + adapters


def test_an_unknown_name_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"set encoder\.name to a folder"):
        encoder_shape(EncoderConfig(name="nobody/nothing"))


def kept_bytes(model: torch.nn.Module, tokens: int, halved: bool) -> int:
    """What torch keeps for the backward pass of one forward pass, weights left out."""
    own = {one.untyped_storage().data_ptr() for one in model.parameters()}
    sizes: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no storage is used twice
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    ids = torch.ones(1, tokens, dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=halved),
    ):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    # Under autocast the weights themselves are kept in halves, which the plan counts apart.
    layers = [one for one in model.modules() if isinstance(one, torch.nn.Linear)]
    weights = sum(2 * one.weight.numel() for one in layers) if halved else 0
    return sum(sizes.values()) - weights


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 0.25), ("bf16", 0.35)])
@pytest.mark.parametrize("inner", [256, 512])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("bert", {}),
        ("modernbert", {"global_attn_every_n_layers": 1}),
        ("llama", {"num_key_value_heads": 4}),
        ("mistral", {"num_key_value_heads": 2}),
    ],
)
def test_activations_are_about_what_a_step_keeps(
    kind: str, settings: dict[str, Any], inner: int, precision: str, tolerance: float
) -> None:
    config = AutoConfig.for_model(
        kind, num_hidden_layers=4, intermediate_size=inner, **SMALL, **settings
    )
    model = AutoModel.from_config(config).train()
    tokens = 64
    estimate = shape_of(model).activations(recompute=False) * KEPT_BYTES[precision] * tokens
    kept = kept_bytes(model, tokens, halved=precision == "bf16")
    assert estimate == pytest.approx(kept, rel=tolerance)


def test_recomputing_keeps_inputs_and_one_block() -> None:
    config = AutoConfig.for_model("bert", num_hidden_layers=4, intermediate_size=512, **SMALL)
    with torch.device("meta"):
        shape = shape_of(AutoModel.from_config(config, add_pooling_layer=False))
    assert shape.activations(recompute=True) == 4 * 128 + shape.activations(recompute=False) // 4
