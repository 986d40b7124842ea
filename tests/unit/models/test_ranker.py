"""The ranker: its score by brute force, its starts, and that its losses learn held-out evidence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from plant_dist.config.schema import MigConfig, RankConfig
from plant_dist.errors import ConfigError
from plant_dist.mig.compute import compute_gains
from plant_dist.mig.graded import GradedLists, ListSampler, graded_lists, hold_out
from plant_dist.mig.heldout import (
    by_chance,
    by_token_frequency,
    evaluate_held_out,
    report_by_band,
)
from plant_dist.mig.lists import GainTable, offsets_of
from plant_dist.models.ranker import (
    ContextualScorer,
    LexicalScorer,
    build_scorer,
    list_scores,
    principal_components,
    score_moments,
    token_label_scores,
)
from plant_dist.objectives.ranking import ranking_loss


def brute_scores(factors_TR: Tensor, bias_T: Tensor, factors_KR: Tensor, bias_K: Tensor) -> Tensor:
    scores = torch.empty(len(factors_KR), len(factors_TR), dtype=torch.float64)
    for label in range(len(factors_KR)):
        for token in range(len(factors_TR)):
            product = sum(a * b for a, b in zip(factors_TR[token], factors_KR[label], strict=True))
            scores[label, token] = product + bias_T[token] + bias_K[label]
    return scores


def test_scores_equal_the_definition_in_every_layout() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tokens_BTR, bias_BT, labels_BKR, bias_BK = (
        noise(2, 5, 3),
        noise(2, 5),
        noise(2, 4, 3),
        noise(2, 4),
    )
    own = token_label_scores(tokens_BTR, bias_BT, labels_BKR, bias_BK)
    shared = token_label_scores(tokens_BTR, bias_BT, labels_BKR[0], bias_BK[0])
    flat = token_label_scores(tokens_BTR[0], bias_BT[0], labels_BKR[0])
    for row in range(2):
        expected = brute_scores(tokens_BTR[row], bias_BT[row], labels_BKR[row], bias_BK[row])
        torch.testing.assert_close(own[row], expected, atol=1e-14, rtol=0)
        expected = brute_scores(tokens_BTR[row], bias_BT[row], labels_BKR[0], bias_BK[0])
        torch.testing.assert_close(shared[row], expected, atol=1e-14, rtol=0)
    expected = brute_scores(tokens_BTR[0], bias_BT[0], labels_BKR[0], torch.zeros(4))
    torch.testing.assert_close(flat, expected, atol=1e-14, rtol=0)
    lists_NM = list_scores(tokens_BTR, bias_BT, labels_BKR[:, 0])
    torch.testing.assert_close(lists_NM, (own - bias_BK[..., None])[:, 0], atol=1e-14, rtol=0)


def test_a_label_bias_never_changes_the_order_of_tokens() -> None:
    tokens_TR, labels_KR = torch.randn(6, 3), torch.randn(4, 3)
    plain = token_label_scores(tokens_TR, torch.zeros(6), labels_KR)
    biased = token_label_scores(tokens_TR, torch.zeros(6), labels_KR, torch.randn(4))
    assert torch.equal(plain.argsort(dim=1), biased.argsort(dim=1))


def test_lexical_scorer_reads_its_tables_by_id() -> None:
    scorer = LexicalScorer(vocabulary_size=50, width=8)
    nn.init.normal_(scorer.bias)
    input_ids = torch.tensor([[3, 3, 49], [0, 7, 3]])
    factors, bias = scorer.token_factors(input_ids, None)
    assert torch.equal(factors[0, 0], scorer.factors[3])
    assert torch.equal(factors[1, 2], scorer.factors[3])
    assert torch.equal(bias, scorer.bias[input_ids])
    assert factors.shape == (2, 3, 8)


def test_contextual_scorer_scales_states_and_wants_them() -> None:
    scorer = ContextualScorer(hidden_size=16, vocabulary_size=50)
    hidden = torch.randn(2, 3, 16)
    factors, bias = scorer.token_factors(torch.zeros(2, 3, dtype=torch.int64), hidden)
    torch.testing.assert_close(factors, hidden / 4.0)
    assert torch.equal(bias, torch.zeros(2, 3))
    with pytest.raises(ConfigError, match=r"rank\.kind"):
        scorer.token_factors(torch.zeros(1, dtype=torch.int64), None)


def test_config_names_the_scorer() -> None:
    lexical = build_scorer(RankConfig(kind="lexical", width=12), 30, 16)
    contextual = build_scorer(RankConfig(kind="contextual", width=12), 30, 16)
    assert isinstance(lexical, LexicalScorer)
    assert isinstance(contextual, ContextualScorer)
    assert (lexical.width, contextual.width) == (12, 16)


def test_principal_components_equal_numpys_svd() -> None:
    matrix = torch.randn(40, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64) + 3.0
    found = principal_components(matrix, 3).numpy()
    centred = matrix.numpy() - matrix.numpy().mean(axis=0)
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :3] * values[:3]), atol=1e-10)


def test_embeddings_start_keeps_their_geometry() -> None:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(60, 5, generator=generator) * 0.05 + 1.0
    centred = embeddings - embeddings.mean(dim=0)
    for width in (5, 9):
        scorer = LexicalScorer(60, width)
        scorer.start_from_embeddings(embeddings)
        factors = scorer.factors.detach()
        assert factors[:, :5].square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=1e-5)
        scale = centred.square().sum(dim=1).mean()
        torch.testing.assert_close(
            factors[:, :5] @ factors[:, :5].T, centred @ centred.T / scale, atol=1e-4, rtol=0
        )
        assert (factors[:, 5:].abs().amax(dim=0) > 0).all(), "spare columns must be able to move"
    with pytest.raises(ConfigError, match="embeddings of 60 tokens for a vocabulary of 61"):
        LexicalScorer(61, 5).start_from_embeddings(embeddings)


VOCABULARY, LABELS, TOPICS = 300, 60, 12


@pytest.fixture(scope="module")
def planted_corpus() -> GainTable:
    """Each label belongs to a topic; a document mixes its labels' topic tokens with noise tokens.

    So a label's evidence is known, and a held-out token is known through the topic's other labels.
    """
    generator = np.random.default_rng(0)
    topic_tokens = generator.permutation(VOCABULARY)[: TOPICS * 15].reshape(TOPICS, 15)
    documents = []
    for _ in range(1500):
        labels = generator.integers(0, LABELS, 2)
        evidence = topic_tokens[labels % TOPICS].ravel()
        evidence = evidence[generator.random(len(evidence)) < 0.5]
        noise = generator.integers(0, VOCABULARY, 10)
        documents.append((np.concatenate([evidence, noise]), labels))
    tokens, labels = zip(*documents, strict=True)
    return compute_gains(
        (offsets_of([len(each) for each in tokens]), np.concatenate(tokens)),
        (offsets_of([len(each) for each in labels]), np.concatenate(labels)),
        VOCABULARY,
        LABELS,
        MigConfig(top_tokens=15, workers=1),
        shown=False,
    )


def train(
    table: GainTable, lists: GradedLists, config: RankConfig, seed: int
) -> tuple[LexicalScorer, Tensor]:
    """Plain AdamW on one loss; returns the token side and the label factors."""
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    scorer = LexicalScorer(VOCABULARY, config.width)
    factors_LR = nn.Parameter(torch.randn(LABELS, config.width) * 0.01)
    optimizer = torch.optim.AdamW([*scorer.parameters(), factors_LR], lr=0.03, weight_decay=0.0)
    sampler = ListSampler(lists, table.token_documents, config)
    for _ in range(config.epochs):
        labels = generator.permutation(lists.labels_to_train())
        drawn = sampler.draw(labels, generator)
        factors_NMR, bias_NM = scorer.token_factors(torch.from_numpy(drawn.tokens), None)
        scores_NM = list_scores(factors_NMR, bias_NM, factors_LR[torch.from_numpy(labels)])
        loss = ranking_loss(
            scores_NM, torch.from_numpy(drawn.grades), torch.from_numpy(drawn.mask), config
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scorer, factors_LR.detach()


def held_out_ndcg(
    table: GainTable, lists: GradedLists, scorer: LexicalScorer, factors_LR: Tensor
) -> float:
    @torch.no_grad()
    def score(labels: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        factors, bias = scorer.token_factors(torch.from_numpy(tokens), None)
        return token_label_scores(factors, bias, factors_LR[torch.from_numpy(labels)]).numpy()

    return mean_ndcg(table, lists, score)


def mean_ndcg(table: GainTable, lists: GradedLists, score) -> float:
    scores = evaluate_held_out(score, lists, table.token_documents, (5,), seed=0)
    assert len(scores.labels) > 30
    return float(report_by_band(scores, table.label_documents)["all"]["ndcg@5"])


@pytest.mark.parametrize("loss", ["lambdarank", "ranknet", "listnet", "approxndcg"])
def test_ranker_beats_frequency_and_chance_on_held_out_pairs(
    planted_corpus: GainTable, loss: str
) -> None:
    torch.set_num_threads(1)
    config = RankConfig(
        loss=loss, width=16, list_tokens=15, sampled_tokens=45, truncation=15, epochs=60
    )
    lists = hold_out(graded_lists(planted_corpus, config.grades), 0.2, seed=0)
    frequency = mean_ndcg(planted_corpus, lists, by_token_frequency(planted_corpus.token_documents))
    chance = mean_ndcg(planted_corpus, lists, by_chance(0))
    untrained = held_out_ndcg(planted_corpus, lists, *train(
        planted_corpus, lists, RankConfig(loss=loss, width=16, epochs=1), seed=0
    ))  # fmt: skip
    trained = held_out_ndcg(planted_corpus, lists, *train(planted_corpus, lists, config, seed=0))
    assert trained > max(frequency, chance, untrained) + 0.35


def test_one_seed_trains_one_ranker(planted_corpus: GainTable) -> None:
    config = RankConfig(width=8, epochs=5)
    lists = hold_out(graded_lists(planted_corpus, config.grades), 0.2, seed=0)
    first, same = (train(planted_corpus, lists, config, seed=1) for _ in range(2))
    other = train(planted_corpus, lists, config, seed=2)
    assert torch.equal(first[1], same[1])
    assert torch.equal(first[0].factors, same[0].factors)
    assert not torch.equal(first[1], other[1])


def test_moments_are_those_of_all_scores() -> None:
    torch.manual_seed(0)
    factors, bias, labels = torch.randn(50, 7), torch.randn(50) * 3, torch.randn(9, 7)
    labels[4] = 0  # nothing learnt: the biases alone
    mean, deviation = score_moments(factors, bias, labels)
    scores = token_label_scores(factors, bias, labels).double()
    torch.testing.assert_close(mean, scores.mean(1), rtol=0, atol=1e-5)
    torch.testing.assert_close(deviation, scores.std(1, correction=0), rtol=0, atol=1e-5)
    # One token has no spread, and rounding must not make it imaginary.
    assert score_moments(factors[:1], bias[:1], labels)[1].tolist() == [0.0] * 9
