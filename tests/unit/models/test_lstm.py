from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from plant_dist.config.schema import EncoderConfig, OptimConfig
from plant_dist.errors import ConfigError
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.models.encoder import SegmentEncoder, check_reads, load_encoder
from plant_dist.models.lstm import (
    AwdLstm,
    AwdLstmConfig,
    LstmLayer,
    locked_dropout,
    reading_order,
    register,
)
from plant_dist.runtime.context import has_bf16
from plant_dist.train.optim import Thaw, encoder_groups

V, D, INNER = 40, 6, 10
NONE = dict.fromkeys(
    ("embedding_dropout", "input_dropout", "hidden_dropout", "weight_dropout"), 0.0
)


def lstm(layers: int = 3, inner: int = INNER, **changes: Any) -> AwdLstm:
    torch.manual_seed(0)
    rates = {**NONE, "window": None, **changes}
    return AwdLstm(
        AwdLstmConfig(
            vocab_size=V, hidden_size=D, intermediate_size=inner, num_hidden_layers=layers, **rates
        )
    )  # fmt: skip


def as_torch(model: AwdLstm) -> nn.ModuleList:
    """The independent truth: torch's own LSTMs with the same weights."""
    found = nn.ModuleList()
    for layer in model.layers:
        assert isinstance(layer, LstmLayer)
        one = nn.LSTM(layer.weight_ih.shape[1], layer.width, batch_first=True)
        with torch.no_grad():
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(one, f"{name}_l0").copy_(getattr(layer, name))
        found.append(one)
    return found


def run(stack: nn.ModuleList, vectors: Tensor) -> Tensor:
    for layer in stack:
        vectors, _ = layer(vectors)
    return vectors


def documents() -> tuple[Tensor, Tensor]:
    """(B=3, S=3, T=7) ids and mask: documents of 3, 1 and 2 segments, the last ones short."""
    ids = torch.randint(4, V, (3, 3, 7), generator=torch.Generator().manual_seed(2))
    mask = torch.zeros(3, 3, 7, dtype=torch.bool)
    for document, lengths in enumerate([(7, 7, 4), (5,), (7, 2)]):
        for segment, length in enumerate(lengths):
            mask[document, segment, :length] = True
    return ids.masked_fill(~mask, 0), mask


# Without dropouts it is torch's LSTM


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("backward", [False, True])
def test_without_dropout_outputs_and_gradients_are_those_of_torch(
    training: bool, backward: bool
) -> None:
    model = lstm(backward=backward).train(training)
    truth = as_torch(model)
    table = model.embedding.weight.detach().clone().requires_grad_()
    ids = torch.randint(0, V, (4, 15))
    found = model(ids).last_hidden_state
    read = ids.flip(1) if backward else ids
    expected = run(truth, table[read])
    expected = expected.flip(1) if backward else expected
    assert torch.allclose(found, expected, atol=1e-6)
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(model.embedding.weight.grad, table.grad, atol=1e-6)
    for layer, other in zip(model.layers, truth, strict=True):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            mine, theirs = getattr(layer, name).grad, getattr(other, f"{name}_l0").grad
            assert theirs.abs().max() > 1e-3
            assert torch.allclose(mine, theirs, atol=1e-6), name


def test_layers_of_one_width_are_one_torch_module() -> None:
    model = lstm(inner=D)
    truth = nn.LSTM(D, D, num_layers=3, batch_first=True)
    with torch.no_grad():
        for number, layer in enumerate(model.layers):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                getattr(truth, f"{name}_l{number}").copy_(getattr(layer, name))
    ids = torch.randint(0, V, (2, 9))
    expected, _ = truth(model.embedding(ids))
    assert torch.allclose(model(ids).last_hidden_state, expected, atol=1e-6)


@pytest.mark.parametrize("window", [1, 4, 9, 100])
def test_a_window_cuts_gradients_and_changes_no_state(window: int) -> None:
    whole, cut = lstm(layers=1), lstm(layers=1, window=window)
    ids = torch.randint(0, V, (2, 9))
    assert torch.allclose(whole(ids).last_hidden_state, cut(ids).last_hidden_state, atol=1e-6)
    # Only the last state asks for a gradient: no earlier window may feel it.
    vectors = torch.randn(2, 9, D, requires_grad=True)
    layer = cut.layers[0]
    layer(vectors)[:, -1].sum().backward()
    reached = vectors.grad.abs().sum((0, 2)) > 0
    last_window = (torch.arange(9) // window) == (8 // window)
    assert torch.equal(reached, last_window)


def test_truncated_gradients_are_those_of_a_loop_over_windows() -> None:
    model = lstm(window=4)
    truth = as_torch(model)
    ids = torch.randint(0, V, (3, 11))
    found = model(ids).last_hidden_state
    weights = torch.randn_like(found)
    (found * weights).sum().backward()
    states: list[Any] = [None] * 3
    for start in range(0, 11, 4):
        part = model.embedding.weight.detach()[ids[:, start : start + 4]]
        for number, layer in enumerate(truth):
            part, state = layer(part, states[number])
            states[number] = tuple(one.detach() for one in state)
        (part * weights[:, start : start + 4]).sum().backward()
    for layer, other in zip(model.layers, truth, strict=True):
        assert torch.allclose(layer.weight_hh.grad, other.weight_hh_l0.grad, atol=1e-6)


# Reading documents


@pytest.mark.parametrize("backward", [False, True])
def test_a_document_is_read_from_end_to_end_across_segments(backward: bool) -> None:
    encoder = SegmentEncoder(lstm(backward=backward).eval())
    truth = as_torch(encoder.backbone)
    ids, mask = documents()
    with torch.no_grad():
        hidden = encoder(ids, mask)
        assert hidden.shape == (3, 3, 7, D)
        assert not hidden[~mask].any()
        for b in range(3):
            # The bare text of the document, without padding or borders.
            text = ids[b][mask[b]]
            read = text.flip(0) if backward else text
            expected = run(truth, encoder.backbone.embedding(read)[None])[0]
            expected = expected.flip(0) if backward else expected
            assert torch.allclose(hidden[b][mask[b]], expected, atol=1e-6)
    # And not segment by segment: the second one's states know the first.
    assert not torch.allclose(hidden[0, 1], encoder(ids[:1, 1:2], mask[:1, 1:2])[0, 0], atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    more=st.integers(0, 4),
    backward=st.booleans(),
    filler=st.integers(0, V - 1),
)
def test_padding_never_changes_the_state_of_a_token(
    lengths: list[int], more: int, backward: bool, filler: int
) -> None:
    torch.set_num_threads(1)
    model = lstm(backward=backward).eval()
    width = max(lengths) + more
    ids = torch.randint(0, V, (len(lengths), width))
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    with torch.no_grad():
        found = model(ids.masked_fill(~mask, filler), mask).last_hidden_state
        for b, length in enumerate(lengths):
            alone = model(ids[b : b + 1, :length]).last_hidden_state[0]
            assert torch.allclose(found[b, :length], alone, atol=1e-6)
            assert not found[b, length:].any()


def test_the_mask_decides_what_is_read() -> None:
    model = lstm().eval()
    ids = torch.randint(0, V, (1, 5))
    with torch.no_grad():
        whole = model(ids, torch.ones(1, 5)).last_hidden_state
        without = model(ids, torch.tensor([[1, 0, 1, 1, 1]])).last_hidden_state
        expected = model(ids[:, [0, 2, 3, 4]]).last_hidden_state
    assert torch.allclose(without[:, [0, 2, 3, 4]], expected, atol=1e-6)
    assert not torch.allclose(whole[:, 2:], without[:, 2:], atol=1e-3)


def test_reading_order_by_hand() -> None:
    mask = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    forward, backward = reading_order(mask, False), reading_order(mask, True)
    assert forward.real_BN.tolist() == [[True] * 3, [True, False, False]]
    assert forward.place_BN[0].tolist() == [0, 1, 3]
    assert backward.place_BN[0].tolist() == [3, 1, 0]
    assert forward.place_BN[1, 0] == backward.place_BN[1, 0] == 1
    assert sorted(backward.place_BN[1].tolist()) == sorted(set(backward.place_BN[1].tolist()))


def test_a_document_without_tokens_has_states_of_zero() -> None:
    ids, mask = torch.zeros(2, 1, 3, dtype=torch.int64), torch.zeros(2, 1, 3, dtype=torch.bool)
    assert not SegmentEncoder(lstm())(ids, mask).any()


# Dropouts


def test_locked_dropout_has_one_mask_for_all_time_steps() -> None:
    torch.manual_seed(1)
    dropped = locked_dropout(torch.ones(16, 9, 50), 0.4, training=True)
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert (dropped == 0).float().mean().item() == pytest.approx(0.4, abs=0.06)
    # A mask of its own for each document.
    assert not torch.equal(dropped[0], dropped[1])
    kept = torch.randn(2, 3, 4)
    assert locked_dropout(kept, 0.4, training=False) is kept


@pytest.mark.parametrize(("rate", "layer"), [("input_dropout", 0), ("hidden_dropout", 1)])
def test_locked_dropout_reaches_its_layer(rate: str, layer: int) -> None:
    model = lstm(**{rate: 0.5}).train()
    seen: dict[int, Tensor] = {}
    for number, one in enumerate(model.layers):
        one.register_forward_pre_hook(lambda m, args, number=number: seen.update({number: args[0]}))
    model(torch.randint(0, V, (3, 9)))
    for number in range(3):
        # A number that is exactly 0 at every step was dropped.
        dropped_BD = (seen[number] == 0).all(1)
        assert torch.equal(dropped_BD, (seen[number] == 0).any(1))
        expected = number == layer or (rate == "hidden_dropout" and number == 2)
        assert bool(dropped_BD.any()) == expected


def test_drop_connect_drops_weights_and_not_states(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LstmLayer(D, 30, weight_dropout=0.5, window=3).train()
    original, used = torch.lstm, []

    def watched(vectors: Tensor, state: Any, weights: list[Tensor], *others: Any) -> Any:
        used.append([one.detach().clone() for one in weights])
        return original(vectors, state, weights, *others)

    monkeypatch.setattr(torch, "lstm", watched)
    vectors = torch.randn(2, 9, D)
    found = layer(vectors)
    assert len(used) == 3
    for weights in used:
        # One network for all windows of a reading.
        assert torch.equal(weights[1], used[0][1])
        for name, mine in zip(("weight_ih", "bias_ih", "bias_hh"), [weights[0], *weights[2:]],
                              strict=True):  # fmt: skip
            assert torch.equal(mine, getattr(layer, name))
    mask = used[0][1] / layer.weight_hh
    assert set(mask.unique().tolist()) == {0.0, 2.0}
    assert (mask == 0).float().mean().item() == pytest.approx(0.5, abs=0.05)
    # States are those of torch's LSTM with these weights: nothing else is dropped.
    truth = nn.LSTM(D, 30, batch_first=True)
    with torch.no_grad():
        for name, value in zip(("weight_ih", "weight_hh", "bias_ih", "bias_hh"), used[0],
                               strict=True):  # fmt: skip
            getattr(truth, f"{name}_l0").copy_(value)
    assert torch.allclose(found, truth(vectors)[0], atol=1e-6)
    # Another reading drops others, and dropped weights get no gradient from this one.
    layer(vectors)
    assert not torch.equal(used[-1][1], used[0][1])
    found.sum().backward()
    assert not layer.weight_hh.grad[mask == 0].any()
    assert layer.weight_hh.grad[mask == 2].any()


def test_embedding_dropout_drops_whole_words_wherever_they_occur() -> None:
    model = lstm(embedding_dropout=0.5).train()
    seen: list[Tensor] = []
    model.layers[0].register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    ids = torch.arange(V).repeat(2, 2)
    model(ids)
    ratio = (seen[0] / model.embedding(ids)).detach()
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio))
    by_word = ratio[..., 0].reshape(4, V)
    assert torch.allclose(by_word, by_word[:1].expand_as(by_word))
    assert set(by_word[0].round(decimals=4).tolist()) == {0.0, 2.0}


def test_evaluation_has_no_dropout_and_training_has_each() -> None:
    ids = torch.randint(0, V, (2, 8))
    expected = lstm().eval()(ids).last_hidden_state
    for rate in NONE:
        model = lstm(**{rate: 0.5})
        assert torch.allclose(model.eval()(ids).last_hidden_state, expected, atol=1e-6)
        torch.manual_seed(3)
        first, second = (model.train()(ids).last_hidden_state for _ in range(2))
        assert not torch.allclose(first, second, atol=1e-4), rate


# As an encoder


def test_bf16_is_near_fp32_and_trains() -> None:
    model = lstm(weight_dropout=0.3)
    ids, mask = documents()
    exact = SegmentEncoder(model).eval()(ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = SegmentEncoder(model)(ids, mask)
        # A CPU that has no bf16 reads in fp32.
        assert rounded.dtype == (torch.bfloat16 if has_bf16("cpu") else torch.float32)
        assert torch.allclose(rounded.float(), exact, atol=0.02)
        loss = SegmentEncoder(model.train())(ids, mask).float().square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.isfinite().all()


def test_depths_thaw_from_the_top_layer_down_and_embeddings_last() -> None:
    model = lstm()
    encoder = SegmentEncoder(model)
    depths = encoder.depths()
    layers = [list(layer.parameters()) for layer in model.layers]
    expected = [layers[2], layers[1], layers[0], [model.embedding.weight]]
    assert [[id(p) for p in group] for group in depths] == [
        [id(p) for p in group] for group in expected
    ]
    groups = encoder_groups(depths, OptimConfig(encoder_learning_rate=1.0, layer_decay=0.5))
    assert [group.learning_rate for group in groups] == [1.0, 0.5, 0.25, 0.125]
    thaw = Thaw(groups, (0.0, 1.0, 2.0, 3.0))
    for epoch in range(4):
        thaw.apply(float(epoch))
        trains = [all(p.requires_grad for p in group) for group in depths]
        assert trains == [number <= epoch for number in range(4)]
        # What is frozen gets no gradient, and what trains does.
        model.zero_grad()
        encoder(*documents()).sum().backward()
        assert [all(p.grad is not None for p in group) for group in depths] == trains


def test_sizes_and_what_it_reads() -> None:
    model = lstm()
    encoder = SegmentEncoder(model)
    assert (encoder.width, encoder.vocabulary_size) == (D, V)
    check_reads(model, V, 100_000)
    with pytest.raises(ConfigError, match=f"the encoder embeds {V}"):
        check_reads(model, V + 1, 10)


def test_a_saved_folder_is_loaded_as_any_encoder(tmp_path: Path) -> None:
    model = lstm(backward=True, weight_dropout=0.5).eval()
    model.save_pretrained(tmp_path)
    found = load_encoder(EncoderConfig(name=str(tmp_path), dropout=0.25)).eval()
    assert isinstance(found, AwdLstm)
    assert found.config.backward
    rates = [getattr(found.config, name) for name in NONE]
    assert rates == [0.25] * 4
    assert found.layers[0].weight_dropout == 0.25
    ids, mask = documents()
    assert torch.equal(SegmentEncoder(found)(ids, mask), SegmentEncoder(model)(ids, mask))
    register()
    assert type(AutoConfig.from_pretrained(tmp_path)) is AwdLstmConfig
    assert type(AutoModel.from_pretrained(tmp_path)) is AwdLstm
    with pytest.raises(ConfigError, match="awd_lstm cannot compute its activations again"):
        load_encoder(EncoderConfig(name=str(tmp_path), gradient_checkpointing=True))


def test_a_classifier_around_it_saves_and_opens(tmp_path: Path) -> None:
    torch.manual_seed(4)
    config = PlantConfig(
        encoder=lstm(backward=True).config.to_dict(), label_count=5,
        decoder={"branches": ["learned"]}, segment_tokens=7,
    )  # fmt: skip
    model = PlantForMultiLabelClassification(config).eval()
    model.save_pretrained(tmp_path)
    again = PlantForMultiLabelClassification.from_pretrained(tmp_path).eval()
    ids, mask = documents()
    with torch.no_grad():
        first, second = model(ids, mask).logits, again(ids, mask).logits
    assert isinstance(again.encoder.backbone, AwdLstm)
    assert torch.equal(first, second)
    assert first.shape == (3, 5)
