"""Ranking losses against hand-worked lists, explicit lambdas, finite differences, scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score
from torch import Tensor

from plant_dist.config.schema import RankConfig
from plant_dist.objectives.ranking import LOSSES, ndcg_at_k, ranking_loss

SECOND, THIRD = 1 / math.log2(3), 1 / math.log2(4)


def tensors(
    scores: list[list[float]], grades: list[list[int]], mask: list[list[bool]] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    scores_NM = torch.tensor(scores, dtype=torch.float64)
    mask_NM = torch.ones_like(scores_NM, dtype=torch.bool) if mask is None else torch.tensor(mask)
    return scores_NM, torch.tensor(grades), mask_NM


def random_lists(lists: int, items: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores_NM = torch.randn(lists, items, generator=generator, dtype=torch.float64)
    grades_NM = torch.randint(0, 4, (lists, items), generator=generator)
    mask_NM = torch.rand(lists, items, generator=generator) < 0.8
    return scores_NM, grades_NM, mask_NM


def gradient(lists: tuple[Tensor, Tensor, Tensor], config: RankConfig) -> Tensor:
    scores_NM = lists[0].clone().requires_grad_()
    ranking_loss(scores_NM, lists[1], lists[2], config).backward()
    assert scores_NM.grad is not None
    return scores_NM.grad


def explicit_lambdas(
    scores: list[float], grades: list[int], k: int, sigma: float
) -> tuple[list[float], list[tuple[int, int, float]]]:
    """d loss / d s by λ_ij = σ/(1+e^{σ(s_i-s_j)})·|ΔNDCG@k|, item by item; and each |Δ|."""
    order = sorted(range(len(scores)), key=lambda item: -scores[item])
    rank = {item: place + 1 for place, item in enumerate(order)}

    def discount(place: int) -> float:
        return 1 / math.log2(1 + place) if place <= k else 0.0

    ideal = sum(
        (2**grade - 1) * discount(place + 1)
        for place, grade in enumerate(sorted(grades, reverse=True))
    )
    lambdas, deltas = [0.0] * len(scores), []
    for i, s_i in enumerate(scores):
        for j, s_j in enumerate(scores):
            if grades[i] > grades[j]:
                delta = abs(2 ** grades[i] - 2 ** grades[j]) / ideal
                delta *= abs(discount(rank[i]) - discount(rank[j]))
                pull = sigma / (1 + math.exp(sigma * (s_i - s_j))) * delta
                lambdas[i] -= pull
                lambdas[j] += pull
                deltas.append((i, j, delta))
    return lambdas, deltas


def test_lambdarank_of_three_tokens_by_hand() -> None:
    # Scores 0, 1, 2 and grades 2, 0, 1 (gains 3, 0, 1): ranks 3, 2, 1; IDCG@2 = 3 + 1/log2 3.
    lists = tensors([[0.0, 1.0, 2.0]], [[2, 0, 1]])
    config = RankConfig(loss="lambdarank", truncation=2, sigma=1.0)
    ideal = 3 + SECOND
    # Rank 3 lies beyond k, so its discount is 0.
    delta_01, delta_02, delta_21 = 3 * SECOND / ideal, 2 * 1.0 / ideal, (1 - SECOND) / ideal
    loss = delta_01 * math.log(1 + math.e) + delta_02 * math.log(1 + math.e**2)
    loss += delta_21 * math.log(1 + math.exp(-1))
    assert ranking_loss(*lists, config).item() == pytest.approx(loss, abs=1e-14)
    pull_01 = delta_01 / (1 + math.exp(-1))
    pull_02 = delta_02 / (1 + math.exp(-2))
    pull_21 = delta_21 / (1 + math.exp(1))
    expected = [-pull_01 - pull_02, pull_01 + pull_21, pull_02 - pull_21]
    assert gradient(lists, config)[0].tolist() == pytest.approx(expected, abs=1e-14)


@pytest.mark.parametrize(("k", "sigma"), [(1, 1.0), (3, 2.0), (10, 0.5)])
def test_lambdarank_gradient_equals_explicit_lambdas(k: int, sigma: float) -> None:
    scores_NM, grades_NM, _ = random_lists(5, 7, seed=k)
    lists = (scores_NM, grades_NM, torch.ones_like(scores_NM, dtype=torch.bool))
    config = RankConfig(loss="lambdarank", truncation=k, sigma=sigma)
    found = gradient(lists, config) * 5
    for row in range(5):
        scores, grades = scores_NM[row].tolist(), grades_NM[row].tolist()
        lambdas, _ = explicit_lambdas(scores, grades, k, sigma)
        assert found[row].tolist() == pytest.approx(lambdas, abs=1e-12)


def test_lambdarank_gradient_equals_finite_differences_with_delta_held_fixed() -> None:
    scores, grades, sigma = [0.3, -0.2, 0.9, 0.1], [1, 3, 0, 2], 1.5
    _, deltas = explicit_lambdas(scores, grades, 3, sigma)

    def pairwise(at: list[float]) -> float:
        return sum(delta * math.log1p(math.exp(-sigma * (at[i] - at[j]))) for i, j, delta in deltas)

    config = RankConfig(loss="lambdarank", truncation=3, sigma=sigma)
    found, step = gradient(tensors([scores], [grades]), config)[0], 1e-5
    for item in range(4):
        ahead, behind = scores.copy(), scores.copy()
        ahead[item] += step
        behind[item] -= step
        slope = (pairwise(ahead) - pairwise(behind)) / (2 * step)
        assert found[item].item() == pytest.approx(slope, abs=1e-9)


def test_ranknet_of_three_tokens_by_hand() -> None:
    lists = tensors([[0.0, 1.0, 2.0]], [[2, 0, 1]])
    config = RankConfig(loss="ranknet", sigma=2.0)
    loss = math.log(1 + math.exp(2)) + math.log(1 + math.exp(4)) + math.log(1 + math.exp(-2))
    assert ranking_loss(*lists, config).item() == pytest.approx(loss / 3, abs=1e-14)
    pulls = [2 / (1 + math.exp(-2)), 2 / (1 + math.exp(-4)), 2 / (1 + math.exp(2))]
    expected = [-pulls[0] - pulls[1], pulls[0] + pulls[2], pulls[1] - pulls[2]]
    assert (gradient(lists, config)[0] * 3).tolist() == pytest.approx(expected, abs=1e-14)


def test_listnet_of_three_tokens_by_hand() -> None:
    lists = tensors([[0.0, 1.0, 2.0]], [[2, 0, 1]])
    config = RankConfig(loss="listnet")
    total = 1 + math.e + math.e**2
    loss = -(3 / 4) * math.log(1 / total) - (1 / 4) * math.log(math.e**2 / total)
    assert ranking_loss(*lists, config).item() == pytest.approx(loss, abs=1e-14)
    expected = [1 / total - 3 / 4, math.e / total, math.e**2 / total - 1 / 4]
    assert gradient(lists, config)[0].tolist() == pytest.approx(expected, abs=1e-14)


def test_approxndcg_of_three_tokens_by_hand() -> None:
    lists = tensors([[0.0, 1.0, 2.0]], [[2, 0, 1]])

    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    first, third = 1 + sigmoid(1) + sigmoid(2), 1 + sigmoid(-2) + sigmoid(-1)
    dcg = 3 / math.log2(1 + first) + 1 / math.log2(1 + third)
    found = ranking_loss(*lists, RankConfig(loss="approxndcg", sigma=1.0)).item()
    assert found == pytest.approx(1 - dcg / (3 + SECOND), abs=1e-14)


def test_sharp_approxndcg_is_one_minus_ndcg() -> None:
    scores_NM, grades_NM, mask_NM = random_lists(6, 9, seed=1)
    found = ranking_loss(
        scores_NM, grades_NM, mask_NM, RankConfig(loss="approxndcg", sigma=1e5)
    ).item()
    expected = 1 - ndcg_at_k(scores_NM, grades_NM, mask_NM, 9).mean().item()
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("loss", ["ranknet", "listnet", "approxndcg"])
def test_gradients_pass_gradcheck(loss: str) -> None:
    scores_NM, grades_NM, mask_NM = random_lists(3, 6, seed=2)
    config = RankConfig(loss=loss, sigma=1.3)
    assert torch.autograd.gradcheck(
        lambda scores: ranking_loss(scores, grades_NM, mask_NM, config),
        (scores_NM.requires_grad_(),),
    )


@pytest.mark.parametrize("loss", list(LOSSES))
def test_masked_items_change_nothing_and_the_mask_changes_the_result(loss: str) -> None:
    scores_NM, grades_NM, mask_NM = random_lists(8, 10, seed=3)
    config = RankConfig(loss=loss, truncation=4)
    expected = np.mean(
        [
            ranking_loss(
                scores_NM[row, there][None],
                grades_NM[row, there][None],
                torch.ones(1, int(there.sum()), dtype=torch.bool),
                config,
            ).item()
            for row, there in enumerate(mask_NM)
        ]
    )
    found = ranking_loss(scores_NM, grades_NM, mask_NM, config).item()
    assert found == pytest.approx(expected, abs=1e-12)
    unmasked = ranking_loss(scores_NM, grades_NM, torch.ones_like(mask_NM), config).item()
    assert abs(unmasked - found) > 1e-4
    assert not gradient((scores_NM, grades_NM, mask_NM), config)[~mask_NM].any()
    wild = scores_NM.masked_fill(~mask_NM, 1e30)
    assert ranking_loss(wild, grades_NM, mask_NM, config).item() == pytest.approx(found, abs=1e-12)


@pytest.mark.parametrize("loss", list(LOSSES))
def test_mean_is_over_lists_that_hold_a_pair(loss: str) -> None:
    config = RankConfig(loss=loss)
    alone = tensors([[0.1, 0.7, 0.2]], [[1, 0, 3]])
    mixed = tensors(
        [[0.1, 0.7, 0.2], [0.5, 0.1, 0.9], [0.4, 0.8, 0.6]],
        [[1, 0, 3], [0, 0, 0], [2, 2, 0]],
        [[True] * 3, [True] * 3, [True, True, False]],
    )
    expected = ranking_loss(*alone, config).item()
    assert ranking_loss(*mixed, config).item() == pytest.approx(expected, abs=1e-14)
    assert not gradient(mixed, config)[1:].any()
    nothing = (mixed[0][1:], mixed[1][1:], mixed[2][1:])
    assert ranking_loss(*nothing, config).item() == 0.0
    assert not gradient(nothing, config).any()


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_scores_stay_finite(loss: str, dtype: torch.dtype) -> None:
    scores_NM = torch.tensor([[1e4, -1e4, 0.0, 5e3], [0.0, 0.0, 0.0, 0.0]], dtype=dtype)
    scores_NM.requires_grad_()
    grades_NM = torch.tensor([[0, 16, 1, 2], [1, 0, 0, 16]])
    found = ranking_loss(
        scores_NM, grades_NM, torch.ones_like(grades_NM, dtype=torch.bool), RankConfig(loss=loss)
    )
    found.backward()
    assert found.dtype == dtype
    assert found.isfinite()
    assert scores_NM.grad is not None
    assert scores_NM.grad.isfinite().all()
    assert scores_NM.grad[1, 3] < 0, "a relevant item among equals is pulled up"


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1000), st.integers(1, 12), st.integers(1, 12))
def test_ndcg_equals_scikit_learn(seed: int, items: int, k: int) -> None:
    scores_NM, grades_NM, mask_NM = random_lists(4, items, seed)
    found = ndcg_at_k(scores_NM, grades_NM, mask_NM, k)
    for row, there in enumerate(mask_NM):
        gains = 2.0 ** grades_NM[row, there].numpy() - 1
        if gains.any() and len(gains) > 1:
            expected = ndcg_score(gains[None], scores_NM[row, there].numpy()[None], k=k)
            assert found[row].item() == pytest.approx(expected, abs=1e-12)
        elif not gains.any():
            assert found[row].isnan()
