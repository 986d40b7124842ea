from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BertConfig,
    LongformerConfig,
    MistralConfig,
    ModernBertConfig,
    PreTrainedConfig,
)

from plant_dist.config.schema import EncoderConfig
from plant_dist.models import cpu_attention
from plant_dist.models.encoder import SegmentEncoder, encoder_from_config, load_encoder

COMMON = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 21, "pad_token_id": 0,
}  # fmt: skip
SPECIAL = {"bos_token_id": 1, "eos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1}
# An encoder, one with windows, and a causal one with shared keys.
FAMILIES: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(**COMMON),
    "modernbert": ModernBertConfig(
        **COMMON, **SPECIAL, local_attention=8, global_attn_every_n_layers=2
    ),
    "mistral": MistralConfig(**COMMON, num_key_value_heads=1, head_dim=8, sliding_window=None),
}
IDS = torch.arange(4, 40).view(3, 1, 12)
MASK = torch.ones_like(IDS, dtype=torch.bool)
MASK[1, :, 9:] = False


def states_and_gradients(encoder: SegmentEncoder, bf16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    encoder.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        hidden = encoder(IDS, MASK).float()
    torch.autograd.backward(hidden[MASK].pow(3).sum())
    found = {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}
    return hidden.detach()[MASK], found


@pytest.fixture(params=FAMILIES)
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> SegmentEncoder:
    torch.manual_seed(0)
    encoder_from_config(copy.deepcopy(FAMILIES[request.param])).save_pretrained(tmp_path)
    return SegmentEncoder(load_encoder(EncoderConfig(name=str(tmp_path), dropout=0.0)))


def test_in_float32_nothing_changes(encoder: SegmentEncoder) -> None:
    can = encoder.backbone._can_set_attn_implementation()  # transformers 5.0 cannot ModernBERT
    assert encoder.backbone.config._attn_implementation == (cpu_attention.NAME if can else "sdpa")
    states, gradients = states_and_gradients(encoder, bf16=False)
    encoder.backbone.set_attn_implementation("eager")
    plain_states, plain_gradients = states_and_gradients(encoder, bf16=False)
    torch.testing.assert_close(states, plain_states)
    assert gradients.keys() == plain_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain_gradients[name], rtol=1e-4, atol=1e-4)


def test_in_bf16_gradients_are_no_further_from_the_true_ones(encoder: SegmentEncoder) -> None:
    encoder.backbone.set_attn_implementation("eager")
    _, true = states_and_gradients(encoder, bf16=False)

    def error(implementation: str) -> float:
        encoder.backbone.set_attn_implementation(implementation)
        _, gradients = states_and_gradients(encoder, bf16=True)
        off = sum(float((gradients[name] - true[name]).square().sum()) for name in true)
        return (off / sum(float(one.square().sum()) for one in true.values())) ** 0.5

    here = error(cpu_attention.NAME)
    assert 0 < here < 0.05  # bf16 keeps 8 bits; a wrong mask or scale is off by all of it
    assert here < 1.2 * error("sdpa")


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape).to(torch.bfloat16)


def test_attends_in_float32_where_gradients_run_and_as_given_elsewhere() -> None:
    torch.manual_seed(0)
    query, key, value = drawn(2, 3, 7, 4), drawn(2, 3, 7, 4), drawn(2, 3, 7, 4)
    mask = torch.rand(2, 1, 7, 7) > 0.3
    mask[..., 0] = True
    exact = scaled_dot_product_attention(query.float(), key.float(), value.float(), mask)
    given = scaled_dot_product_attention(query, key, value, mask)
    assert not torch.equal(exact.to(torch.bfloat16), given)  # else the test would say nothing
    query.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learnt, weights = cpu_attention.attend(nn.Module(), query, key, value, mask)
    assert weights is None
    assert learnt.dtype == torch.bfloat16
    assert torch.equal(learnt, exact.to(torch.bfloat16).transpose(1, 2))
    with torch.no_grad():
        read, _ = cpu_attention.attend(nn.Module(), query.detach(), key, value, mask)
    assert torch.equal(read, given.transpose(1, 2))
    # What is added to products may be bf16 as well; the fused product takes one dtype.
    added = torch.zeros(2, 1, 7, 7, dtype=torch.bfloat16).masked_fill(~mask, -1e30)
    summed, _ = cpu_attention.attend(nn.Module(), query, key, value, added)
    assert torch.equal(summed, learnt)


def test_models_that_attend_in_their_own_way_are_left_to_it() -> None:
    config = LongformerConfig(**COMMON, attention_window=4, eos_token_id=2)
    model = encoder_from_config(config)
    before = model.config._attn_implementation
    cpu_attention.learn_in_float32(model)
    assert model.config._attn_implementation == before != cpu_attention.NAME
