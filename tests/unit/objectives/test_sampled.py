"""The loss over a shortlist estimates the loss over all labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from plant_dist.config.schema import LossConfig
from plant_dist.data.csr import Csr, csr_from_lists
from plant_dist.objectives.multilabel import document_losses
from plant_dist.shortlist.candidates import CandidateSampler

L = 30
GOLD = [[2, 5, 9], [], list(range(12)), [0, 29]]
MINED = np.array([[1, 2, 3, 4], [7, 8, -1, -1], [20, 21, 22, 23], [0, 1, 2, -1]])
IGNORED = [[11], [3, 4], [], [0]]
LOGITS = 2 * torch.randn(4, L, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def flat(labels: Csr) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(labels.offsets), torch.from_numpy(labels.values.astype(np.int64))


def sampled(
    epoch: int, width: int, config: LossConfig, weights: torch.Tensor | None = None
) -> torch.Tensor:
    drawn = CandidateSampler(L, width, 0.5, seed=3).draw(
        csr_from_lists(GOLD), MINED, np.arange(4), epoch, csr_from_lists(IGNORED)
    )
    if weights is not None:
        weights = weights[torch.from_numpy(drawn.gold_places)]
    return document_losses(
        LOGITS.gather(1, torch.from_numpy(drawn.label_ids)),
        torch.from_numpy(drawn.gold_offsets), torch.from_numpy(drawn.gold_columns), config,
        weights, stands_for=torch.from_numpy(drawn.weights).double(), labels=L,
    )  # fmt: skip


def full(config: LossConfig, weights: torch.Tensor | None = None) -> torch.Tensor:
    offsets, ids = flat(csr_from_lists(GOLD))
    return document_losses(LOGITS, offsets, ids, config, weights, flat(csr_from_lists(IGNORED)))


@pytest.mark.parametrize("kind", ["bce", "focal", "asl"])
def test_its_expectation_is_the_loss_over_all_labels(kind: str) -> None:
    config, runs = LossConfig(kind=kind), 3000
    weights = torch.linspace(0.5, 3.0, sum(map(len, GOLD)), dtype=torch.float64)
    found = torch.stack([sampled(epoch, 12, config, weights) for epoch in range(runs)])
    expected = full(config, weights)
    deviation = found.std(0) / runs**0.5
    # Document 2 has more gold labels than fit, the others are but drawn from.
    assert (found.std(0) > 0).all()
    assert ((found.mean(0) - expected).abs() < 4.5 * deviation).all()
    # And the test would notice: without the weights of random labels it is another number.
    assert ((0.9 * found.mean(0) - expected).abs() > 4.5 * deviation).all()


@pytest.mark.parametrize("kind", ["bce", "focal", "asl", "softmax"])
def test_with_room_for_all_labels_it_is_the_loss_itself(kind: str) -> None:
    config = LossConfig(kind=kind)
    assert sampled(0, 100, config).tolist() == pytest.approx(full(config).tolist())


def test_softmax_of_a_sample_is_low_on_average_and_near() -> None:
    """ln of an estimate: Jensen's inequality has one direction."""
    config = LossConfig(kind="softmax")
    found = torch.stack([sampled(epoch, 16, config) for epoch in range(1500)]).mean(0)
    expected = full(config)
    some = torch.tensor([0, 3])
    assert (found[some] < expected[some]).all()
    assert (found[some] > 0.8 * expected[some]).all()
