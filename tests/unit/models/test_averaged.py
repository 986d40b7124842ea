from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plant_dist.models.averaged import AveragedClassifier, mean_logits
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification

L = 4


def member(seed: int, width: int) -> PlantForMultiLabelClassification:
    torch.manual_seed(seed)
    encoder = {"model_type": "awd_lstm", "vocab_size": 20, "hidden_size": width,
               "intermediate_size": 7, "backward": bool(seed % 2)}  # fmt: skip
    made = PlantForMultiLabelClassification(
        PlantConfig(encoder=encoder, decoder={"branches": ["learned"]}, label_count=L)
    )
    for rows in made.labels.fields.values():
        torch.nn.init.normal_(rows)
    return made.eval()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=4))
def test_the_mean_is_of_probabilities(logits: list[float]) -> None:
    values = torch.tensor(logits, dtype=torch.float64)
    found = mean_logits(list(values))
    assert torch.sigmoid(found).item() == pytest.approx(values.sigmoid().mean().item(), rel=1e-9)


def test_far_logits_stay_apart() -> None:
    found = mean_logits([torch.tensor([40.0, 50.0, -60.0]), torch.tensor([40.0, 50.0, -60.0])])
    assert found.tolist() == pytest.approx([40.0, 50.0, -60.0])


def test_members_of_unlike_widths_and_directions_speak_as_one() -> None:
    members = [member(0, 6), member(1, 10)]
    both = AveragedClassifier(members)
    ids = torch.randint(1, 20, (2, 3, 5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 2] = mask[0, 2, 3:] = False
    keep = mask.clone()
    keep[:, :, 0] = False
    with torch.no_grad():
        alone = [one(ids, mask, keep).logits for one in members]
        found = both(ids, mask, keep).logits
        expected = torch.stack(alone).sigmoid().mean(0)
        assert torch.allclose(found.sigmoid(), expected, atol=1e-6)
        assert not torch.allclose(alone[0], alone[1], atol=1e-2)
        hidden, read, kept = both.encode(ids, mask, keep)
        assert hidden.shape == (2, 3, 5, 16)
        # Given what the encoders gave before, they are not run.
        assert torch.allclose(both(ids, mask, keep, hidden=hidden).logits, found)
        labels = torch.tensor([[0, 3], [2, 1]])
        weights = both.decoder.attention_weights(hidden, read, kept, labels)["combined"]
        for part, one in zip(hidden.split([6, 10], -1), members, strict=True):
            weights = weights - one.decoder.attention_weights(part, read, kept, labels)[
                "combined"
            ] / len(members)
        assert weights.abs().max() < 1e-6


def test_members_with_one_frozen_encoder_run_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [member(0, 6), member(2, 6), member(4, 6)]
    ids = torch.randint(1, 20, (2, 3, 5))
    mask = torch.ones_like(ids, dtype=torch.bool)
    assert not AveragedClassifier(members).one_encoder
    for one in members[1:]:
        one.encoder.load_state_dict(members[0].encoder.state_dict())
    three = AveragedClassifier(members)
    assert three.one_encoder
    with torch.no_grad():
        expected = torch.stack([one(ids, mask, mask).logits for one in members]).sigmoid().mean(0)
        for one in members[1:]:
            monkeypatch.setattr(one, "encode", None)
        hidden, _, _ = three.encode(ids, mask, mask)
        assert hidden.shape == (2, 3, 5, 6)
        assert torch.allclose(three(ids, mask, mask).logits.sigmoid(), expected, atol=1e-6)
        # States of one encoder, from disk, stand for all.
        again = three(ids, mask, mask, hidden=hidden).logits.sigmoid()
        assert torch.allclose(again, expected, atol=1e-6)
