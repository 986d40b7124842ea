from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from plant_dist.config.schema import LstmConfig
from plant_dist.models import language_model
from plant_dist.models.language_model import LanguageModel, unigram

V = 30
CALM = LstmConfig(
    width=6, inner_width=9, layers=2, embedding_dropout=0.0, input_dropout=0.0,
    hidden_dropout=0.0, output_dropout=0.0, weight_dropout=0.0, window=3,
)  # fmt: skip


def made(**changes: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel.from_config(replace(CALM, **changes), V)
    with torch.no_grad():
        model.bias.normal_()
    return model


def documents() -> tuple[Tensor, Tensor, Tensor]:
    """(B=2, S=2, T=5): documents of two segments and of one; borders are not asked for."""
    ids = torch.randint(4, V, (2, 2, 5), generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], [[1, 1, 1, 1, 0], [0] * 5]]).bool()
    counted = mask.clone()
    counted[0, 0, 0] = counted[0, 0, 4] = counted[0, 1, 0] = counted[1, 0, 3] = False
    return ids, mask, counted


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_the_sums_are_those_of_a_loop_over_tokens(direction: str, tied: bool) -> None:
    model = made(direction=direction, tied_weights=tied).eval()
    if model.output is not None:
        torch.nn.init.normal_(model.output)
    ids, mask, counted = documents()
    with torch.no_grad():
        found = model(ids, mask, counted)
        nll = activation = slowness = tokens = 0.0
        for b in range(2):
            text, asked = ids[b][mask[b]], counted[b][mask[b]]
            if direction == "backward":
                text, asked = text.flip(0), asked.flip(0)
            states = model.lstm.states(text[None])[0]
            table = model.lstm.embedding.weight if tied else model.output
            for n in range(1, len(text)):
                if asked[n]:
                    log_p = (table @ states[n - 1] + model.bias).log_softmax(0)
                    nll -= float(log_p[text[n]])
                    activation += float(states[n - 1].square().mean())
                    slowness += float((states[n] - states[n - 1]).square().mean())
                    tokens += 1
    assert found.tokens.item() == tokens > 5
    assert found.nll.item() == pytest.approx(nll, rel=1e-5)
    assert found.activation.item() == pytest.approx(activation, rel=1e-5)
    assert found.slowness.item() == pytest.approx(slowness, rel=1e-5)


def test_targets_are_the_tokens_that_follow() -> None:
    ids, mask, counted = documents()
    targets = made(direction="backward").targets(ids, mask, counted)
    for b in range(2):
        text, asked = ids[b][mask[b]].flip(0)[1:], counted[b][mask[b]].flip(0)[1:]
        assert targets.ids_BN[b][targets.counted_BN[b]].tolist() == text[asked].tolist()


def test_blocks_change_neither_loss_nor_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (1 << 25, 2 * V):
        monkeypatch.setattr(language_model, "LOGITS_PER_BLOCK", size)
        model = made(tied_weights=False)
        loss = model(*documents()).nll
        loss.backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        found.append((loss.item(), gradients))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_tied_weights_are_one_table() -> None:
    tied, untied = made(tied_weights=True), made(tied_weights=False)
    count = [sum(p.numel() for p in one.parameters()) for one in (tied, untied)]
    assert count[1] - count[0] == V * 6
    # Tied, a word that is only predicted moves its embedding.
    ids = torch.tensor([[[4, 5, 6]]])
    asked = torch.ones(1, 1, 3, dtype=torch.bool)
    for model, moves in ((tied, True), (untied, False)):
        model(ids, asked, asked).nll.backward()
        gradient = model.lstm.embedding.weight.grad
        assert bool(gradient[6].any()) == moves
        assert gradient[4].any()


def test_output_dropout_is_locked_and_off_in_evaluation() -> None:
    ids, mask, counted = documents()
    model, calm = made(output_dropout=0.5), made()
    losses = {model.train()(ids, mask, counted).nll.item() for _ in range(3)}
    assert len(losses) == 3
    first, second = (one.eval()(ids, mask, counted).nll.item() for one in (model, calm))
    assert first == second


def test_nothing_to_predict_is_zero_with_a_gradient() -> None:
    model = made()
    ids, mask, counted = documents()
    found = model(ids, mask, counted & False)
    assert [one.item() for one in found] == [0.0] * 4
    (found.nll + found.activation + found.slowness).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_start_predicts_by_frequency() -> None:
    counts = torch.tensor(np.random.default_rng(0).integers(0, 50, V))
    expected = [(int(n) + 1) / (int(counts.sum()) + V) for n in counts]
    assert unigram(counts).exp().tolist() == pytest.approx(expected, rel=1e-5)
    model = made().eval()
    model.start_from_frequency(counts)
    torch.nn.init.zeros_(model.lstm.embedding.weight)
    ids, mask, counted = documents()
    targets = model.targets(ids, mask, counted)
    by_hand = -sum(math.log(expected[i]) for i in targets.ids_BN[targets.counted_BN].tolist())
    assert model(ids, mask, counted).nll.item() == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_head_lies_beside_the_encoder(tmp_path: Path, tied: bool) -> None:
    model = made(tied_weights=tied)
    model.save(tmp_path)
    other = made(tied_weights=tied)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.lstm.load_state_dict(model.lstm.state_dict())
    other.load_head(tmp_path)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
