"""LoRA on small random models: what it computes, what trains and is saved; weights in few bits."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BigBirdConfig,
    GPT2Config,
    LlamaConfig,
    LongformerConfig,
    MistralConfig,
    ModernBertConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from plant_dist.config.load import build_section
from plant_dist.config.schema import Config, EncoderConfig, OptimConfig
from plant_dist.errors import ConfigError, RuntimeSetupError
from plant_dist.models import adapters
from plant_dist.models.adapters import (
    adapter_parameters,
    adapter_settings,
    add_adapters,
    is_adapter,
    unpack,
)
from plant_dist.models.classifier import (
    PlantConfig,
    PlantForMultiLabelClassification,
    register,
)
from plant_dist.models.encoder import (
    SegmentEncoder,
    encoder_from_config,
    encoder_identity,
    load_encoder,
)
from plant_dist.train.optim import Thaw, build_optimizer, check_groups, encoder_groups

V, D, L = 40, 16, 5
COMMON: dict[str, Any] = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 24, "pad_token_id": 0,
}  # fmt: skip
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**COMMON, num_key_value_heads=1),
    "mistral": MistralConfig(**COMMON, num_key_value_heads=1, head_dim=8),
    "qwen2": Qwen2Config(**COMMON, num_key_value_heads=1),
    "phi": PhiConfig(**COMMON),
    "gpt2": GPT2Config(vocab_size=V, n_embd=D, n_layer=3, n_head=2, n_positions=24),
    "bert": BertConfig(**COMMON),
    "modernbert": ModernBertConfig(**COMMON, local_attention=8),
    "longformer": LongformerConfig(**COMMON, attention_window=4),
    "big_bird": BigBirdConfig(**COMMON, attention_type="original_full"),
}  # fmt: skip
LORA = {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": []}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def made(family: str, held: str = "fp32") -> Any:
    torch.manual_seed(0)
    config = copy.deepcopy(FAMILIES[family])
    config.dtype = DTYPES[held]
    return encoder_from_config(config).eval()


def adapted(family: str, held: str = "fp32", **changes: Any) -> Any:
    """An encoder whose adapters say something."""
    model = made(family, held)
    add_adapters(model, LORA | changes)
    torch.manual_seed(1)
    for one in adapter_parameters(model):
        torch.nn.init.normal_(one, std=0.3)
    return model.eval()


IDS = torch.randint(4, V, (2, 2, 9), generator=torch.Generator().manual_seed(2))
MASK = torch.ones_like(IDS, dtype=torch.bool)
MASK[1, 0, 6:] = MASK[1, 1, :] = False


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_change_nothing_before_they_learn_and_something_after(family: str) -> None:
    plain, model = made(family), made(family)
    add_adapters(model, LORA)
    with torch.no_grad():
        before = SegmentEncoder(plain)(IDS, MASK)
        untrained = SegmentEncoder(model.eval())(IDS, MASK)
        assert torch.allclose(untrained, before, atol=1e-6)
        after = SegmentEncoder(adapted(family))(IDS, MASK)
    assert not torch.allclose(after, before, atol=1e-2)
    assert torch.isfinite(after).all()


def test_an_adapted_layer_adds_the_scaled_product() -> None:
    layer = adapted("llama").layers[1].self_attn.q_proj
    W, A, B = layer.base_layer.weight, layer.lora_A.default.weight, layer.lora_B.default.weight
    assert (A.shape, B.shape) == ((2, D), (D, 2))
    x = torch.randn(7, D)
    wanted = x @ (W + 6.0 / 2 * B @ A).T
    assert torch.allclose(layer(x), wanted, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held", DTYPES)
def test_only_adapters_train_in_single_precision_by_depth(family: str, held: str) -> None:
    model = adapted(family, held)
    encoder = SegmentEncoder(model)
    training = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert training
    assert all(is_adapter(name) for name in training)
    assert {p.dtype for p in training.values()} == {torch.float32}
    frozen = {p.dtype for n, p in model.named_parameters() if not is_adapter(n)}
    assert frozen == {DTYPES[held]}
    depths = encoder.depths()
    assert len(depths) == 4
    names = {id(p): name for name, p in training.items()}
    listed = [names[id(p)] for group in depths for p in group]
    assert sorted(listed) == sorted(training)
    for depth, group in enumerate(depths[:-1]):
        assert group
        assert all(f".{2 - depth}." in names[id(p)] for p in group)


def test_rates_fall_with_depth_and_thawing_leaves_frozen_weights_frozen() -> None:
    model = adapted("llama")
    config = OptimConfig(encoder_learning_rate=1e-3, layer_decay=0.5, unfreeze_epochs=(0.0, 2.0))
    groups = [g for g in encoder_groups(SegmentEncoder(model).depths(), config) if g.parameters]
    assert [group.learning_rate for group in groups] == [1e-3, 5e-4, 2.5e-4]
    check_groups(model, groups)
    thaw = Thaw(groups, config.unfreeze_epochs)
    counts = []
    for progress in (0.0, 1.9, 2.0):
        thaw.apply(progress)
        counts.append([all(p.requires_grad for p in group.parameters) for group in groups])
        assert not any(p.requires_grad for n, p in model.named_parameters() if not is_adapter(n))
    assert counts == [[True, True, False], [True, True, False], [True, True, True]]


@pytest.mark.parametrize("held", DTYPES)
def test_a_step_moves_adapters_and_nothing_else(held: str) -> None:
    encoder = SegmentEncoder(adapted("qwen2", held)).train()
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    groups = [g for g in encoder_groups(encoder.depths(), OptimConfig()) if g.parameters]
    optimizer = build_optimizer(groups, (0.9, 0.99), torch.device("cpu"))
    encoder(IDS, MASK).square().sum().backward()
    optimizer.step()
    moved = {name for name, p in encoder.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if is_adapter(name)}


def test_targets_are_chosen_by_name() -> None:
    model = adapted("mistral", targets=["q_proj", "v_proj"])
    beside = {name.split(".lora_")[0].rpartition(".")[2]
              for name, _ in model.named_parameters() if is_adapter(name)}  # fmt: skip
    assert beside == {"q_proj", "v_proj"}
    with pytest.raises(ConfigError, match=r"lora_targets is \['query'\].*choose from: down_proj, "):
        add_adapters(made("mistral"), LORA | {"targets": ["query"]})


# A classifier with adapters


def classifier(family: str, held: str, **decoder: Any) -> PlantForMultiLabelClassification:
    encoder = adapted(family, held)
    described = encoder.config.to_dict()
    config = PlantConfig(
        encoder=described, decoder={"planted_k": 3, "branches": ["learned", "planted"], **decoder},
        ranker={"kind": "contextual", "width": 6}, label_count=L, segment_tokens=9, lora=LORA,
    )  # fmt: skip
    model = PlantForMultiLabelClassification(config, SegmentEncoder(encoder))
    for rows in model.labels.fields.values():
        torch.nn.init.normal_(rows)
    return model.eval()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("held", DTYPES)
def test_a_saved_classifier_has_the_same_weights_bit_for_bit(
    family: str, held: str, tmp_path: Path
) -> None:
    register()
    model = classifier(family, held)
    model.save_pretrained(tmp_path)
    loaded, again = (
        kind.from_pretrained(tmp_path).eval()
        for kind in (PlantForMultiLabelClassification, AutoModelForSequenceClassification)
    )
    with torch.no_grad():
        wanted = model(IDS, MASK, MASK).logits
        assert wanted.dtype == torch.float32
        for one in (loaded, again):
            saved = one.state_dict()
            assert saved.keys() == model.state_dict().keys()
            assert all(torch.equal(saved[name], p) for name, p in model.state_dict().items())
            # Kernels may round otherwise where weights lie at another address.
            torch.testing.assert_close(one(IDS, MASK, MASK).logits, wanted, rtol=1e-5, atol=1e-5)
    found = {name: p.dtype for name, p in loaded.named_parameters()}
    assert found == {name: p.dtype for name, p in model.named_parameters()}


def test_half_precision_of_the_original_does_not_round_a_trained_encoder(tmp_path: Path) -> None:
    """An LLM's config says bf16; what was trained in fp32 must be saved and read as such."""
    made("llama", "bf16").save_pretrained(tmp_path / "encoder")
    backbone = load_encoder(EncoderConfig(name=str(tmp_path / "encoder")))
    torch.nn.init.normal_(backbone.norm.weight)
    config = PlantConfig(encoder=backbone.config.to_dict(), label_count=L, segment_tokens=9,
                         decoder={"branches": ["learned"]})  # fmt: skip
    PlantForMultiLabelClassification(config, SegmentEncoder(backbone)).save_pretrained(tmp_path)
    loaded = PlantForMultiLabelClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.encoder.backbone.norm.weight, backbone.norm.weight)


def test_checkpoints_leave_out_what_never_trains() -> None:
    model = classifier("llama", "bf16")
    kept = [name for name in model.state_dict() if not model.is_given(name)]
    assert {n for n, p in model.named_parameters() if p.requires_grad} <= set(kept)
    assert all(is_adapter(name) for name in kept if name.startswith("encoder."))
    plain = PlantForMultiLabelClassification(PlantConfig(label_count=L))
    assert not any(plain.is_given(name) for name in plain.state_dict())


# Weights in few bits, and what is refused


def test_bf16_weights_are_those_of_the_file_rounded(tmp_path: Path) -> None:
    source = made("phi")
    source.save_pretrained(tmp_path)
    config = EncoderConfig(name=str(tmp_path), load_in="bf16")
    held = load_encoder(config)
    for (name, found), wanted in zip(held.named_parameters(), source.parameters(), strict=True):
        assert torch.equal(found, wanted.to(torch.bfloat16)), name
    with torch.no_grad():
        states, wanted = (SegmentEncoder(one.eval())(IDS, MASK) for one in (held, source))
    assert states.dtype == torch.float32
    assert torch.allclose(states[MASK], wanted[MASK], atol=0.1)
    assert not torch.equal(states[MASK], wanted[MASK])
    # Cached states and rankers of one must not serve the other.
    assert encoder_identity(config) != encoder_identity(EncoderConfig(name=str(tmp_path)))


def test_four_bits_without_a_gpu_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    made("llama").save_pretrained(tmp_path)
    with pytest.raises(RuntimeSetupError, match=r"needs a CUDA GPU.*set encoder\.load_in=bf16"):
        load_encoder(EncoderConfig(name=str(tmp_path), load_in="4bit"))


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "find_spec", lambda name: None)
    with pytest.raises(RuntimeSetupError, match=r"peft is not installed.*plant-dist\[llm\]"):
        add_adapters(made("llama"), LORA)


FREEZE = {"train": {"optim": {"freeze_encoder": True}}}
REFUSED = {
    "adapters that never learn": ({"encoder": {"lora_rank": 4}} | FREEZE, "would never learn"),
    "rounded weights that train": ({"encoder": {"load_in": "bf16"}}, "round to nothing"),
    "4 bits on the CPU": (
        {"encoder": {"load_in": "4bit", "lora_rank": 4}, "runtime": {"device": "cpu"}},
        "needs a CUDA GPU, but runtime.device is cpu",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_contradict_each_other_are_refused(name: str) -> None:
    content, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason):
        build_section(Config, content)


def test_settings_that_agree_are_taken() -> None:
    config = build_section(Config, {"encoder": {"lora_rank": 4, "load_in": "bf16"}})
    assert adapter_settings(config.encoder) == {
        "rank": 4, "alpha": 16.0, "dropout": 0.0, "targets": []
    }  # fmt: skip
    assert (
        build_section(Config, {"encoder": {"load_in": "bf16"}} | FREEZE).encoder.lora_rank is None
    )
    assert adapter_settings(EncoderConfig()) is None


def test_unpacked_layers_hold_the_values_that_were_packed() -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="4-bit layers need bitsandbytes")
    from bitsandbytes.functional import dequantize_4bit

    model = made("llama", "bf16")
    wanted = {}
    for number, block in enumerate(model.layers):
        plain = block.mlp.up_proj
        packed = bitsandbytes.nn.Linear4bit(
            plain.in_features, plain.out_features, bias=False, quant_type="nf4",
            compute_dtype=torch.bfloat16,
        )  # fmt: skip
        packed.load_state_dict(plain.state_dict())
        block.mlp.up_proj = packed.to("cpu")
        weight = block.mlp.up_proj.weight
        wanted[number] = dequantize_4bit(weight.data, weight.quant_state)
    add_adapters(model, LORA)
    unpack(model)
    for number, block in enumerate(model.layers):
        layer = block.mlp.up_proj
        assert type(layer.base_layer) is torch.nn.Linear
        assert torch.equal(layer.base_layer.weight, wanted[number].to(torch.bfloat16))
        assert (layer.base_layer.in_features, layer.base_layer.out_features) == (D, 32)
    assert torch.isfinite(SegmentEncoder(model)(IDS, MASK)).all()
    assert all(is_adapter(n) for n, p in model.named_parameters() if p.requires_grad)
