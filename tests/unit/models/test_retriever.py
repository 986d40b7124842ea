from __future__ import annotations

from typing import Any

import pytest
import torch

from plant_dist.errors import ConfigError
from plant_dist.labels.fetched import FetchedRows
from plant_dist.models.classifier import PlantConfig, PlantForMultiLabelClassification
from plant_dist.models.exact import best_of_all
from plant_dist.models.ranker import ContextualScorer, LexicalScorer
from plant_dist.models.retriever import LearnedTower, RankerTower, Retriever

V, R, D, L = 30, 5, 32, 40


def documents(seed: int = 1, count: int = 50) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, V, (count, 12), generator=random)
    keep = torch.arange(12) < torch.randint(3, 13, (count, 1), generator=random)
    return ids, keep


def lexical() -> LexicalScorer:
    torch.manual_seed(0)
    scorer = LexicalScorer(V, R)
    torch.nn.init.normal_(scorer.bias)
    return scorer


def test_the_rankers_score_is_the_deviation_of_the_weighted_mean_of_token_scores() -> None:
    scorer, tower = lexical(), RankerTower(V, R)
    tower.token_weight.copy_(torch.rand(V))
    factor = torch.randn(L, R)
    ids, keep = documents()
    pooled = tower.pooled(scorer, None, ids, keep).detach()
    tower.fit(torch.tensor(len(pooled)), pooled.sum(0), pooled.T @ pooled)
    found = tower.document_vectors(pooled) @ tower.label_vectors(factor).T
    # By hand: s(t, l) of each token, its weighted mean, less the mean over documents, over σ.
    with torch.no_grad():
        scores = scorer.factors @ factor.T + scorer.bias[:, None]
    means = torch.stack(
        [
            sum(tower.token_weight[t] * scores[t] for t in row[kept].tolist())
            / tower.token_weight[row[kept]].sum()
            for row, kept in zip(ids, keep, strict=True)
        ]
    )
    expected = (means - means.mean(0)) / means.std(0, correction=0)
    assert found == pytest.approx(expected, abs=1e-3)


def test_tokens_that_are_not_kept_or_weigh_nothing_change_nothing() -> None:
    scorer, tower = lexical(), RankerTower(V, R)
    tower.token_weight[7] = 0
    ids, keep = torch.tensor([[1, 2, 7, 9]]), torch.tensor([[True, True, True, False]])
    pooled = tower.pooled(scorer, None, ids, keep)
    alone = tower.pooled(scorer, None, torch.tensor([[2, 1]]), torch.ones(1, 2, dtype=torch.bool))
    assert pooled.tolist()[0] == pytest.approx(alone.tolist()[0])
    every = torch.ones_like(keep)
    assert not torch.allclose(tower.pooled(scorer, None, ids, every), pooled)
    nothing = tower.pooled(scorer, None, ids, torch.zeros_like(keep))
    assert (nothing == 0).all()


def test_a_label_text_is_near_documents_that_say_it() -> None:
    scorer, tower = lexical(), RankerTower(V, R)
    ids, keep = documents(count=200)
    pooled = tower.pooled(scorer, None, ids, keep)
    tower.fit(torch.tensor(len(pooled)), pooled.sum(0), pooled.T @ pooled)
    text = tower.pooled(scorer, None, ids[:20], keep[:20])
    labels = tower.text_vectors(text)
    scores = tower.document_vectors(pooled[:20]) @ labels.T
    # The text of label i is document i.
    own = scores.diagonal()
    # In deviations: its own document is far above the mean of all, others are not.
    assert own.mean() > 1.0
    assert abs((scores.sum() - own.sum()) / (20 * 19)) < 0.3


def test_learned_vectors_start_where_the_encoder_puts_texts() -> None:
    torch.manual_seed(1)
    tower = LearnedTower(D, D)
    hidden, keep = torch.randn(6, 4, D), torch.tensor([[True, True, False, True]] * 6)
    means = (hidden[:, 0] + hidden[:, 1] + hidden[:, 3]) / 3
    expected = torch.nn.functional.cosine_similarity(means[:, None], means[None], dim=-1)
    vectors = tower.document_vectors(hidden, keep)
    assert torch.allclose(vectors @ vectors.T, expected, atol=1e-5)
    assert torch.allclose(tower.label_vectors(3 * vectors), vectors, atol=1e-6)
    assert torch.allclose(tower.text_vectors(2 * means), vectors, atol=1e-6)


def test_documents_learn_and_texts_of_labels_stay() -> None:
    """Else a row that is not touched would lag behind what projects the texts of the others."""
    torch.manual_seed(2)
    tower = LearnedTower(D, 5)
    hidden, keep = torch.randn(6, 4, D), torch.ones(6, 4, dtype=torch.bool)
    texts = tower.text_vectors(torch.randn(7, D))
    before = tower.document_vectors(hidden, keep)
    optimizer = torch.optim.SGD(tower.parameters(), lr=1.0)
    (tower.document_vectors(hidden, keep) @ texts.T).square().sum().backward()
    optimizer.step()
    assert (tower.document_vectors(hidden, keep) - before).abs().max() > 0.01
    torch.manual_seed(2)
    assert torch.equal(tower.frame, LearnedTower(D, 5).frame)
    # A frame of fewer numbers is orthonormal: no direction counts twice.
    assert torch.allclose(tower.frame @ tower.frame.T, torch.eye(5), atol=1e-6)


@pytest.mark.parametrize("shortlist", [True, False])
def test_the_learned_towers_logits_are_cosines_of_labels_rows(shortlist: bool) -> None:
    torch.manual_seed(0)
    retriever = Retriever({"vectors": "learned", "width": 8, "temperature": 0.1}, D, V, None)
    rows = torch.randn(6, 8).requires_grad_()
    with torch.no_grad():
        rows[2] = 0  # a row that points nowhere is like nothing
    places = torch.tensor([[0, 2, 5], [5, 5, 1]]) if shortlist else None
    vectors = torch.nn.functional.normalize(torch.randn(2, 8), dim=-1).requires_grad_()
    said = retriever.similarities(vectors, FetchedRows({"retrieval": rows}, places))
    own = rows[places] if shortlist else rows.expand(2, -1, -1)
    # Documents' vectors are unit vectors when they come.
    expected = (torch.nn.functional.normalize(own, dim=-1) * vectors[:, None]).sum(-1) / 0.1
    torch.testing.assert_close(said, expected)
    weights = torch.randn_like(said)
    found = torch.autograd.grad((said * weights).sum(), (vectors, rows))
    wanted = torch.autograd.grad((expected * weights).sum(), (vectors, rows))
    torch.testing.assert_close(found[0], wanted[0])
    # Of a row of zeros the slope is what its floor makes it, on either side.
    there = [0, 1, 5] if shortlist else [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[1][there], wanted[1][there])
    assert found[1].isfinite().all()


def test_towers_by_settings() -> None:
    settings = {"vectors": "learned", "width": 8, "temperature": 0.1}
    assert Retriever(settings, D, V, lexical()).kinds == ("ranker", "learned")
    assert Retriever(settings, D, V, None).kinds == ("learned",)
    contextual = Retriever({**settings, "vectors": "ranker"}, D, V, ContextualScorer(D, V))
    assert contextual.kinds == ("ranker",)
    assert contextual.needs_hidden("ranker")
    assert not Retriever(settings, D, V, lexical()).needs_hidden("ranker")
    with pytest.raises(ConfigError, match="no planted ranker"):
        Retriever({**settings, "vectors": "ranker"}, D, V, None)


def classifier(retriever: Any = None, **decoder: Any) -> PlantForMultiLabelClassification:
    torch.manual_seed(3)
    made = PlantForMultiLabelClassification(
        PlantConfig(
            decoder={"branches": ["learned", "planted"], "planted_k": 4, **decoder},
            ranker={"width": R}, label_count=L, special_ids=[0], retriever=retriever,
        )
    )  # fmt: skip
    for rows in made.labels.fields.values():
        torch.nn.init.normal_(rows)
    return made.eval()


def batch(segments: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, V, (3, segments, 9), generator=torch.Generator().manual_seed(5))
    ids[1, -1, 4:] = 0
    return ids, ids != 0


@pytest.mark.parametrize("state", ["none", "attention_state", "logit_state"])
@pytest.mark.parametrize("block", [1, 7, 40])
def test_the_best_of_all_labels_by_blocks(state: str, block: int) -> None:
    model = classifier(state=state, label_block=block)
    ids, keep = batch()
    with torch.no_grad():
        hidden, ids, keep = model.encode(ids, None, keep)
        every = model.score(hidden, ids, keep)
        logits, labels = model.score_best(hidden, ids, keep, 6)
    expected = every.topk(6, dim=1)
    assert (labels == expected.indices).all()
    assert torch.allclose(logits, expected.values, atol=1e-5)
    more, _ = best_of_all(model.decoder, hidden, ids, keep, 10 * L)
    assert more.shape == (3, L)


class Chosen:
    """Chooses given labels, and remembers what it was asked with."""

    def __init__(self, vectors: str, label_ids: torch.Tensor) -> None:
        self.vectors, self.label_ids = vectors, label_ids
        self.asked: torch.Tensor | None = None

    def __call__(self, document_vectors_BX: torch.Tensor) -> torch.Tensor:
        self.asked = document_vectors_BX
        return self.label_ids


@pytest.mark.parametrize("vectors", ["ranker", "learned"])
def test_labels_are_chosen_between_encoding_and_scoring(vectors: str) -> None:
    model = classifier({"vectors": "learned", "width": 8, "temperature": 0.1})
    ids, keep = batch()
    wanted = torch.tensor([[3, 1, 2], [5, 6, 7], [39, 0, 3]])
    choose = Chosen(vectors, wanted)
    model.train()
    said = model(ids, None, keep, label_ids=choose)
    assert said.label_ids is wanted
    assert said.logits.shape == (3, 3)
    assert choose.asked is not None
    assert choose.asked.shape == (3, R + 2 if vectors == "ranker" else 8)
    assert not choose.asked.requires_grad
    # In both cases the learned tower is taught, document and label alike.
    said.similarities.sum().backward()
    rows = model.labels.fields["retrieval"].grad
    assert set(rows.abs().sum(1).nonzero()[:, 0].tolist()) == set(wanted.flatten().tolist())
    assert model.retriever.learned.projection.weight.grad.abs().sum() > 0
    model.eval()
    with torch.no_grad():
        alone = model(ids, None, keep).logits
        told = model(ids, None, keep, label_ids=choose)
    assert told.similarities is None
    assert torch.allclose(told.logits, alone.gather(1, wanted), atol=1e-4)


def test_a_classifier_of_all_labels_has_no_shortlists(tmp_path: Any) -> None:
    ids, keep = batch()
    with pytest.raises(ConfigError, match="trained on all labels and has no retriever"):
        classifier()(ids, None, keep, label_ids=Chosen("ranker", torch.zeros(3, 1).long()))
    model = classifier({"vectors": "learned", "width": 8, "temperature": 0.1})
    model.save_pretrained(tmp_path)
    again = PlantForMultiLabelClassification.from_pretrained(tmp_path).eval()
    assert (again.retriever.learned.projection.weight
            == model.retriever.learned.projection.weight).all()  # fmt: skip
    assert (again.labels.fields["retrieval"] == model.labels.fields["retrieval"]).all()


@pytest.mark.parametrize("gates", ["sum", "learned", "shared"])
def test_the_decoders_tower_is_its_logit_where_attention_is_even(gates: str) -> None:
    model = classifier(
        {"vectors": "decoder", "temperature": 0.1},
        branches=["named", "pooled", "bag"], name_window=None, gates=gates,
    )  # fmt: skip
    decoder, rows = model.decoder, model.labels.fields
    with torch.no_grad():
        rows["alone"].copy_(torch.arange(L)[:, None] % 3 == 0)
        rows["name"][5] = 0
        decoder.bag.idf.uniform_(1, 3)
        for parameter in decoder.names.parameters():
            parameter.uniform_(0.5, 1.5)
        decoder.names.center.normal_()
    if gates == "shared":
        torch.nn.init.normal_(decoder.gate)
    ids, keep = batch(segments=1)
    retriever = model.retriever
    assert retriever.kinds == ("decoder",)
    with torch.no_grad():
        hidden, ids, keep = model.encode(ids, None, keep)
        expected = model.score(hidden, ids, keep)
        vectors = retriever.document_vectors("decoder", hidden, ids, keep)
        labels = retriever.label_vectors("decoder", rows)
    assert vectors.shape[1] == labels.shape[1] == retriever.width_of("decoder")
    assert torch.allclose(vectors @ labels.T, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("branches", [["learned"], ["bag"], ["named"], ["planted", "bag"]])
def test_the_decoders_tower_has_what_the_decoder_has(branches: list[str]) -> None:
    model = classifier({"vectors": "decoder", "temperature": 0.1}, branches=branches)
    ids, keep = batch()
    wanted = torch.tensor([[3, 1, 2], [5, 6, 7], [39, 0, 3]])
    choose = Chosen("decoder", wanted)
    said = model.train()(ids, None, keep, label_ids=choose)
    assert said.similarities is None
    assert choose.asked.shape == (3, model.retriever.width_of("decoder"))
    assert not choose.asked.requires_grad
    labels = model.retriever.label_vectors("decoder", model.labels.fields)
    assert labels.shape == (L, choose.asked.shape[1])
