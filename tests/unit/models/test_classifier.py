from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
)

from plant_dist.errors import ConfigError
from plant_dist.models.classifier import (
    PlantConfig,
    PlantForMultiLabelClassification,
    register,
)

V, D, L = 30, 16, 7
SPECIAL = [0, 2, 3]
ENCODERS = {
    "bert": BertConfig(
        vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    ),
    "gpt2": GPT2Config(vocab_size=V, n_embd=D, n_layer=2, n_head=2, n_positions=16),
    "llama": LlamaConfig(
        vocab_size=V, hidden_size=D, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16,
    ),
}  # fmt: skip
STATES = ("none", "attention_state", "logit_state")


def made(encoder: str = "bert", **decoder: Any) -> PlantForMultiLabelClassification:
    """A classifier with noise in every row, and gains for some tokens of each label."""
    torch.manual_seed(1)
    kind = decoder.pop("kind", "lexical")
    config = PlantConfig(
        encoder=ENCODERS[encoder].to_dict(),
        decoder={"planted_k": 3, "static_k": 2, **decoder},
        ranker={"kind": kind, "width": 6},
        label_count=L,
        gain_pairs=2 * L,
        segment_tokens=8,
        special_ids=SPECIAL,
    )
    model = PlantForMultiLabelClassification(config)
    for rows in model.labels.fields.values():
        torch.nn.init.normal_(rows)
    if model.decoder.gains is not None:
        tokens = torch.stack([torch.randperm(V - 4)[:2] + 4 for _ in range(L)]).int().flatten()
        model.decoder.gains.fill(torch.arange(L + 1) * 2, tokens, torch.tensor([0.5, 0.25] * L))
    return model.eval()


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(B=3, S=2, T=8): two segments, one short, one full; [CLS]=2 … [SEP]=3, [PAD]=0."""
    generator = torch.Generator().manual_seed(4)
    ids = torch.zeros(3, 2, 8, dtype=torch.int64)
    for b, lengths in enumerate([(6, 4), (2,), (6,)]):
        for s, length in enumerate(lengths):
            words = torch.randint(4, V, (length,), generator=generator)
            ids[b, s, : length + 2] = torch.cat([torch.tensor([2]), words, torch.tensor([3])])
    return ids, ids != 0, ~torch.isin(ids, torch.tensor(SPECIAL))


@torch.no_grad()
def logits(model: PlantForMultiLabelClassification, *inputs: Any, **named: Any) -> torch.Tensor:
    found: torch.Tensor = model(*inputs, **named).logits
    return found


# Saving and loading


@pytest.mark.parametrize(("encoder", "state"), product(ENCODERS, STATES))
def test_a_saved_model_gives_bit_equal_logits(tmp_path: Path, encoder: str, state: str) -> None:
    model = made(encoder, state=state, gates="learned")
    expected = logits(model, *batch())
    model.save_pretrained(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors"}
    loaded = PlantForMultiLabelClassification.from_pretrained(tmp_path)
    assert not loaded.training
    assert torch.equal(logits(loaded, *batch()), expected)


@pytest.mark.parametrize(
    "decoder",
    [
        {"branches": ["learned"]},
        {"branches": ["planted"], "planted_k": None},
        {"branches": ["static"]},
        {"branches": ["static", "learned"], "gates": "shared"},
        {"kind": "contextual", "learned_k": 2},
        {"freeze_ranker": True, "attend_special": True},
    ],
)
def test_every_kind_of_decoder_is_rebuilt_from_its_config(tmp_path: Path, decoder: Any) -> None:
    model = made(**decoder)
    expected = logits(model, *batch())
    model.save_pretrained(tmp_path)
    loaded, info = PlantForMultiLabelClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert torch.equal(logits(loaded, *batch()), expected)
    assert loaded.config.model_section() == model.config.model_section()
    assert loaded.config.rank_section() == model.config.rank_section()


def test_the_auto_classes_know_the_model_once_registered(tmp_path: Path) -> None:
    model = made()
    model.save_pretrained(tmp_path)
    register()
    register()  # twice does no harm
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, PlantConfig)
    assert config.label_count == L
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert isinstance(loaded, PlantForMultiLabelClassification)
    assert torch.equal(logits(loaded, *batch()), logits(model, *batch()))


def test_a_config_reads_back(tmp_path: Path) -> None:
    config = made().config
    config.save_pretrained(tmp_path)
    again = PlantConfig.from_pretrained(tmp_path)
    plain, found = config.to_dict(), again.to_dict()
    for one in (plain, found):
        one.pop("encoder")
    assert found == plain
    assert again.encoder_config().to_dict() == config.encoder_config().to_dict()
    assert type(again.encoder_config()) is BertConfig
    assert (again.segment_tokens, again.special_ids) == (8, SPECIAL)


def test_a_decoder_setting_of_another_version_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown key gate; did you mean gates"):
        PlantForMultiLabelClassification(PlantConfig(decoder={"gate": "sum"}))


# What the forward pass reads


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_default_keep_leaves_out_special_tokens(encoder: str) -> None:
    model = made(encoder)
    ids, mask, keep = batch()
    assert torch.equal(logits(model, ids, mask), logits(model, ids, mask, keep))
    # The mask has an effect: special tokens, once kept, change the logits.
    assert not torch.allclose(logits(model, ids, mask, mask), logits(model, ids, mask, keep))


def test_special_tokens_are_attended_where_the_config_says_so() -> None:
    ids, mask, keep = batch()
    model = made(attend_special=True)
    plain = made()
    assert torch.equal(logits(model, ids, mask, keep), logits(plain, ids, mask, mask))
    assert torch.equal(logits(model, ids, mask), logits(plain, ids, mask, mask))


def test_without_a_mask_every_token_is_read() -> None:
    model = made()
    ids = torch.randint(4, V, (2, 1, 8), generator=torch.Generator().manual_seed(7))
    assert torch.equal(logits(model, ids), logits(model, ids, torch.ones_like(ids)))


def test_documents_of_one_segment_may_come_flat() -> None:
    model = made()
    ids, mask, keep = batch()
    deep = [one[1:, :1] for one in (ids, mask, keep)]
    flat = [one[:, 0] for one in deep]
    assert torch.equal(logits(model, *flat), logits(model, *deep))
    with pytest.raises(ConfigError, match=r"input_ids has shape \(8,\); give \(documents, tokens"):
        model(ids[0, 0])


@pytest.mark.parametrize(("encoder", "state"), product(ENCODERS, STATES))
def test_padding_segments_and_neighbours_change_nothing(encoder: str, state: str) -> None:
    """A document scored in a batch of longer ones is scored as it is alone."""
    model = made(encoder, state=state)
    ids, mask, keep = batch()
    together = logits(model, ids, mask, keep)
    for b, segments in enumerate((2, 1, 1)):
        one = [part[b : b + 1, :segments] for part in (ids, mask, keep)]
        assert torch.allclose(logits(model, *one)[0], together[b], atol=1e-5)
    garbage = ids.masked_fill(~mask, 9)
    assert torch.allclose(logits(model, garbage, mask, keep), together, atol=1e-6)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_later_segment_is_read(encoder: str) -> None:
    model = made(encoder)
    ids, mask, keep = batch()
    changed = ids.clone()
    changed[0, 1, 1] = (ids[0, 1, 1] - 4 + 1) % (V - 4) + 4
    before, after = logits(model, ids, mask, keep), logits(model, changed, mask, keep)
    assert not torch.allclose(before[0], after[0], atol=1e-4)
    assert torch.equal(before[1:], after[1:])


def test_given_labels_are_those_of_all() -> None:
    model = made(gates="learned")
    ids, mask, keep = batch()
    wanted = torch.tensor([[0, 6, 3], [5, 5, 1], [2, 4, 0]])
    everything = logits(model, ids, mask, keep)
    some = logits(model, ids, mask, keep, label_ids=wanted)
    assert torch.allclose(some, everything.gather(1, wanted), atol=1e-5)


def test_a_tuple_on_request() -> None:
    model = made()
    [found] = model(*batch(), return_dict=False)
    assert torch.equal(found.detach(), logits(model, *batch()))
    assert found.shape == (3, L)
    assert found.dtype == torch.float32


ALONE = ([name] for name in ("learned", "planted", "static", "pooled", "named"))


@pytest.mark.parametrize("decoder", [{"gates": "learned"}, *({"branches": one} for one in ALONE)])
def test_every_trainable_parameter_gets_a_gradient(decoder: dict[str, Any]) -> None:
    # DistributedDataParallel waits for each.
    model = made(**decoder).train()
    model(*batch()).logits.square().sum().backward()
    without = [
        name for name, p in model.named_parameters() if p.requires_grad and p.grad is None
    ]  # fmt: skip
    assert without == []


def test_a_frozen_ranker_is_not_trained() -> None:
    frozen = made(freeze_ranker=True)
    assert frozen.decoder.scorer is not None
    assert not any(p.requires_grad for p in frozen.decoder.scorer.parameters())


def test_dropout_falls_in_training_only() -> None:
    model = made()
    assert torch.equal(logits(model, *batch()), logits(model, *batch()))
    model.train()
    assert not torch.equal(logits(model, *batch()), logits(model, *batch()))
