"""Planted values against numbers worked by hand, in float64 where the model allows it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from plant_dist.errors import ArtifactError
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.models.planting import (
    GainArrays,
    Planting,
    RankerState,
    good_turing,
    leading_share,
    plant,
    prior_log_odds,
)
from plant_dist.models.ranker import LexicalScorer

L, R, V, D, BUCKETS = 4, 3, 128, 32, 8
FREQUENCY = torch.tensor([0, 10, 100, 1000])
DOCUMENTS = 2000


def made(**decoder: Any) -> PlantForMultiLabelClassification:
    torch.manual_seed(2)
    return PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"boost_init": "random", "bag_pairs": BUCKETS, **decoder},
            ranker={"kind": "lexical", "width": R},
            label_count=L,
            gain_pairs=3,
        )
    )


def everything() -> Planting:
    generator = torch.Generator().manual_seed(6)
    scorer = LexicalScorer(V, R).state_dict()
    vectors = torch.nn.functional.normalize(torch.randn(L, D, generator=generator), dim=1)
    vectors[2] = 0  # a label without text
    return Planting(
        train_frequency=FREQUENCY,
        documents=DOCUMENTS,
        ranker=RankerState(scorer, torch.randn(L, R, generator=generator)),
        gains=GainArrays(
            torch.tensor([0, 2, 2, 3, 3]),
            torch.tensor([5, 9, 7], dtype=torch.int32),
            torch.tensor([0.5, 0.125, 0.25]),
        ),
        label_vectors=vectors,
        hidden_norm=2.5,
        names=vectors,
        center=torch.arange(D).float(),
        feature_documents=torch.arange(V + BUCKETS) * 10,
    )


# Priors


def test_prior_log_odds_by_hand() -> None:
    found = prior_log_odds(torch.tensor([0, 1, 3, 7]), 7)
    expected = [math.log(a / b) for a, b in ((0.5, 7.5), (1.5, 6.5), (3.5, 4.5), (7.5, 0.5))]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)
    assert found.dtype == torch.float32


@given(n=st.integers(1, 10**7), share=st.floats(0, 1))
def test_prior_log_odds_are_finite_rise_and_mirror(n: int, share: float) -> None:
    count = int(n * share)
    low, high, mirror = prior_log_odds(torch.tensor([0, count, n - count]), n).double().tolist()
    assert math.isfinite(low)
    assert low <= high
    # A label and its absence have opposite odds.
    assert high == pytest.approx(-mirror, abs=1e-5)


def test_labels_never_seen_expect_what_those_seen_once_had() -> None:
    found = good_turing(torch.tensor([0, 1, 3, 0, 0, 0, 1, 7]))
    assert found.tolist() == [0.5, 1, 3, 0.5, 0.5, 0.5, 1, 7]
    # More labels were seen once than never: one each, or they would have been seen.
    assert good_turing(torch.tensor([0, 1, 1])).tolist() == [1, 1, 1]
    assert good_turing(torch.tensor([0, 2])).tolist() == [0, 2]
    assert good_turing(torch.tensor([1, 2])).tolist() == [1, 2]


def test_names_priors_and_labels_never_seen_are_planted_and_do_not_learn() -> None:
    planting = replace(everything(), train_frequency=torch.tensor([0, 1, 0, 30]), documents=60)
    model = made(branches=["static", "named"])
    plant(model, planting)
    fields = model.labels.fields
    torch.testing.assert_close(fields["name"].data, planting.names)
    torch.testing.assert_close(model.decoder.names.center, planting.center)
    expected = [math.log(a / b) for a, b in ((1, 60), (1.5, 59.5), (1, 60), (30.5, 30.5))]
    assert fields["prior"][:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    assert fields["alone"][:, 0].tolist() == [1, 0, 1, 0]
    trains = {name for name, rows in fields.items() if rows.requires_grad}
    assert trains == {"boost", "bias"}


def test_the_bias_is_the_prior_or_stays_zero() -> None:
    model = made()
    plant(model, everything())
    bias = model.labels.fields["bias"][:, 0].tolist()
    expected = [math.log((n + 0.5) / (DOCUMENTS - n + 0.5)) for n in FREQUENCY.tolist()]
    assert bias == pytest.approx(expected, rel=1e-6)
    model = made(prior_bias=False)
    plant(model, everything())
    assert model.labels.fields["bias"].abs().sum() == 0


# Gates


def test_the_lead_of_the_planted_branch_by_hand() -> None:
    # Log-linear between 10 and 1,000: 10^1.5 lies a quarter of the way, 100 half of it.
    found = leading_share("planted", torch.tensor([0, 1, 10, 32, 100, 316, 1000, 10**6]))
    expected = [1.0, 1.0, 1.0, 1 - math.log10(3.2) / 2, 0.5, 1 - math.log10(31.6) / 2, 0.0, 0.0]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("branches", [["learned", "planted", "static"], ["planted", "learned"]])
def test_learned_gates_let_the_planted_branch_lead_where_labels_are_rare(
    branches: list[str],
) -> None:
    model = made(gates="learned", branches=branches)
    plant(model, everything())
    gate = model.labels.fields["gate"].detach()
    place = branches.index("planted")
    assert gate[:, place].tolist() == pytest.approx([1.0, 1.0, 0.5, 0.0], abs=1e-6)
    others = [column for column in range(len(branches)) if column != place]
    assert gate[:, others].abs().sum() == 0
    weights = gate.double().softmax(-1) * len(branches)
    e = math.e
    n = len(branches)
    assert weights[0, place].item() == pytest.approx(n * e / (e + n - 1), rel=1e-6)
    assert weights[3].tolist() == pytest.approx([1.0] * n)


def test_another_branch_leads_for_all_labels() -> None:
    model = made(gates="learned", branches=["static", "learned"], leading_branch="learned",
                 gate_lead=2.5)  # fmt: skip
    plant(model, everything())
    expected = torch.tensor([0.0, 2.5]).expand(len(FREQUENCY), 2)
    assert torch.equal(model.labels.fields["gate"].detach(), expected)


def test_gates_stay_even_without_a_planted_branch() -> None:
    model = made(gates="learned", branches=["learned", "static"])
    plant(model, everything())
    assert model.labels.fields["gate"].abs().sum() == 0


# Boosts and queries


def test_boosts_are_the_label_texts_scaled_to_the_evidence_wanted() -> None:
    model = made(boost_init="label_text", boost_scale=10.0)
    planting = everything()
    plant(model, planting)
    boosts = model.labels.fields["boost"].detach().double()
    assert planting.label_vectors is not None
    vectors = planting.label_vectors.double()
    assert torch.allclose(boosts, vectors * 10.0 / 2.5 / 3, atol=1e-6)
    # A document whose every hidden state is the label's text at the usual length: three branches
    # of weight 1 add up to boost_scale.
    hidden = vectors[0] * 2.5
    assert float(3 * boosts[0] @ hidden) == pytest.approx(10.0, rel=1e-5)
    assert boosts[2].abs().sum() == 0


def test_random_boosts_stay_as_they_were_made() -> None:
    model = made()
    before = model.labels.fields["boost"].detach().clone()
    plant(model, everything())
    assert torch.equal(model.labels.fields["boost"], before)


def test_queries_from_label_texts_have_length_root_d() -> None:
    model = made(query_init="label_text")
    planting = everything()
    assert planting.label_vectors is not None
    plant(model, replace(planting, label_vectors=planting.label_vectors * 0.7))
    queries = model.labels.fields["query"].detach().double()
    assert torch.allclose(queries, planting.label_vectors.double() * math.sqrt(D), atol=1e-5)


def test_queries_from_a_ranker_as_wide_as_the_encoder() -> None:
    model = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"boost_init": "random", "query_init": "planted", "bag_pairs": BUCKETS},
            ranker={"kind": "contextual"}, label_count=L, gain_pairs=3,
        )
    )  # fmt: skip
    factor = torch.randn(L, D)
    ranker = RankerState({"bias": torch.randn(V)}, factor)
    plant(model, replace(everything(), ranker=ranker))
    assert torch.equal(model.labels.fields["query"], factor)
    assert torch.equal(model.labels.fields["factor"], factor)
    with pytest.raises(ArtifactError, match=r"query_init: planted needs rank\.kind: contextual"):
        plant(made(query_init="planted"), everything())


# Ranker and gains


@pytest.mark.parametrize("freeze", [False, True])
def test_the_ranker_is_planted_whole(freeze: bool) -> None:
    model, planting = made(freeze_ranker=freeze), everything()
    plant(model, planting)
    assert planting.ranker is not None
    assert torch.equal(model.labels.fields["factor"], planting.ranker.factor)
    scorer = model.decoder.scorer
    assert scorer is not None
    for name, part in scorer.state_dict().items():
        assert torch.equal(part, planting.ranker.scorer[name])
    trained = [model.labels.fields["factor"], *scorer.parameters()]
    assert all(part.requires_grad != freeze for part in trained)


def test_the_planted_attention_is_the_softmax_of_the_rankers_scores() -> None:
    """Before any training: weights of the k best tokens by s(t, l), of all others exactly 0."""
    model, planting = made(branches=["planted"], planted_k=2), everything()
    plant(model, planting)
    model.double().eval()
    ids = torch.tensor([[5, 11, 60, 7, 9]])
    hidden = torch.zeros(1, 5, D, dtype=torch.float64)
    keep = torch.tensor([[True, True, True, True, False]])
    found = model.decoder.attention_weights(hidden, ids, keep)["planted"][0]
    assert planting.ranker is not None
    factors, bias = (planting.ranker.scorer[name].double() for name in ("factors", "bias"))
    for label in range(L):
        scores = factors[ids[0]] @ planting.ranker.factor[label].double() + bias[ids[0]]
        scores[4] = -math.inf
        best = scores.topk(2)
        expected = torch.zeros(5, dtype=torch.float64)
        expected[best.indices] = best.values.softmax(0)
        assert torch.allclose(found[label], expected, atol=1e-12)
        assert int((found[label] == 0).sum()) == 3


def test_the_static_attention_is_the_normalised_gains() -> None:
    model = made(branches=["static"], static_k=2)
    plant(model, everything())
    model.double().eval()
    ids = torch.tensor([[9, 5, 7, 40]])
    hidden, keep = torch.zeros(1, 4, D, dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    found = model.decoder.attention_weights(hidden, ids, keep)["static"][0]
    expected = [[0.125 / 0.625, 0.5 / 0.625, 0, 0], [0] * 4, [0, 0, 1, 0], [0] * 4]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64), atol=1e-12)


def test_planted_logits_by_hand() -> None:
    """One static branch, two tokens: z = Σ_t A(t) w·h_t + b, in float64."""
    model, planting = made(branches=["static"], static_k=2, boost_init="label_text"), everything()
    plant(model, planting)
    model.double().eval()
    hidden = torch.randn(1, 2, D, dtype=torch.float64)
    ids, keep = torch.tensor([[5, 9]]), torch.ones(1, 2, dtype=torch.bool)
    [found] = model.decoder(hidden, ids, keep).detach()
    assert planting.label_vectors is not None
    boost = planting.label_vectors[0].double() * 10.0 / 2.5
    evidence = boost @ (0.8 * hidden[0, 0] + 0.2 * hidden[0, 1])
    assert found[0].item() == pytest.approx(evidence.item() + math.log(0.5 / 2000.5), abs=1e-5)
    # A label that none of the tokens speaks for has its prior alone.
    assert found[3].item() == pytest.approx(math.log(1000.5 / 1000.5), abs=1e-6)


# What does not fit


@pytest.mark.parametrize(
    ("missing", "decoder", "message"),
    [
        ("ranker", {}, "need a ranker; run `plant-dist rank`"),
        ("gains", {"branches": ["static"]}, "need a gain table; run `plant-dist mig`"),
        ("label_vectors", {"boost_init": "label_text"}, "need label_text vectors"),
        ("label_vectors", {"query_init": "label_text"}, "need label vectors"),
        ("ranker", {"query_init": "planted", "branches": ["learned"]}, "need a ranker"),
        ("names", {"branches": ["named"]}, "need label names"),
        ("center", {"branches": ["named"]}, "need a mean text"),
    ],
)
def test_what_the_settings_need_must_be_given(
    missing: str, decoder: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtifactError, match=message):
        plant(made(**decoder), replace(everything(), **{missing: None}))


def test_what_the_settings_do_not_need_may_be_missing() -> None:
    model = made(branches=["learned"])
    plant(model, Planting(train_frequency=FREQUENCY, documents=DOCUMENTS))
    assert model.labels.fields["bias"][3].item() == pytest.approx(0.0)


def test_rows_of_another_label_space_are_refused() -> None:
    planting = everything()
    assert planting.ranker is not None
    fewer = replace(planting.ranker, factor=planting.ranker.factor[:3])
    with pytest.raises(ArtifactError, match=r"found rows of shape \(3, 3\), the model has \(4, 3"):
        plant(made(), replace(planting, ranker=fewer))
    assert planting.label_vectors is not None
    wider = torch.ones(L, D + 1)
    with pytest.raises(ArtifactError, match="label vectors: found rows of shape"):
        plant(made(boost_init="label_text"), replace(planting, label_vectors=wider))


def test_a_scorer_of_another_vocabulary_is_refused() -> None:
    planting = everything()
    assert planting.ranker is not None
    other = RankerState(LexicalScorer(V - 1, R).state_dict(), planting.ranker.factor)
    with pytest.raises(
        ArtifactError, match=r"\(factors\): found rows of shape \(127, 3\), .* \(128, 3\)"
    ):
        plant(made(), replace(planting, ranker=other))


def test_a_scorer_of_another_kind_is_refused() -> None:
    planting = everything()
    assert planting.ranker is not None
    other = RankerState({"bias": torch.zeros(V)}, planting.ranker.factor)
    with pytest.raises(ArtifactError, match="found tensors bias, the model has factors, bias"):
        plant(made(), replace(planting, ranker=other))
