"""Row-wise AdamW: equal to AdamW where it should be, and by hand where it differs."""

from __future__ import annotations

import copy

import torch
from torch import nn

from plant_dist.train.rowwise import RowwiseAdamW


def run(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, gradients: torch.Tensor) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def test_groups_without_rows_are_those_of_adamw() -> None:
    torch.manual_seed(0)
    mine = nn.Parameter(torch.randn(4, 3))
    theirs = copy.deepcopy(mine)
    gradients = torch.randn(5, 4, 3)
    run(RowwiseAdamW([{"params": [mine]}], lr=0.1, weight_decay=0.2), mine, gradients)
    run(torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.2), theirs, gradients)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_rows_of_width_one_are_those_of_adamw() -> None:
    torch.manual_seed(1)
    mine = nn.Parameter(torch.randn(6, 1, dtype=torch.float64))
    theirs = copy.deepcopy(mine)
    gradients = torch.randn(7, 6, 1, dtype=torch.float64)
    groups = [{"params": [mine], "rowwise": True}]
    run(RowwiseAdamW(groups, lr=0.05, weight_decay=0.1), mine, gradients)
    run(torch.optim.AdamW([theirs], lr=0.05, weight_decay=0.1), theirs, gradients)
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_the_first_step_keeps_the_direction_of_each_row() -> None:
    rows = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    optimizer = RowwiseAdamW(
        [{"params": [rows], "rowwise": True}], lr=0.1, weight_decay=0.0, eps=0.0
    )
    run(optimizer, rows, torch.tensor([[[3.0, 4.0], [0.0, -2.0]]], dtype=torch.float64))
    # m̂ = g and v̂ = mean(g²): 12.5 and 2.
    first = -0.1 * torch.tensor([3.0, 4.0], dtype=torch.float64) / 12.5**0.5
    second = -0.1 * torch.tensor([0.0, -2.0], dtype=torch.float64) / 2.0**0.5
    torch.testing.assert_close(rows.detach(), torch.stack([first, second]))


def test_a_row_without_gradient_stays_and_the_state_is_one_number_a_row() -> None:
    rows = nn.Parameter(torch.ones(3, 5))
    optimizer = RowwiseAdamW([{"params": [rows], "rowwise": True}], lr=0.1, weight_decay=0.0)
    gradient = torch.zeros(1, 3, 5)
    gradient[0, 1] = 1.0
    run(optimizer, rows, gradient)
    torch.testing.assert_close(rows[0], torch.ones(5), rtol=0, atol=0)
    assert float((rows.detach()[1] - 1).abs().min()) > 0.05
    assert optimizer.state[rows]["exp_avg_sq"].shape == (3, 1)


def test_state_survives_saving_and_loading() -> None:
    torch.manual_seed(2)
    gradients = torch.randn(6, 4, 3)
    straight = nn.Parameter(torch.randn(4, 3))
    resumed = copy.deepcopy(straight)
    run(RowwiseAdamW([{"params": [straight], "rowwise": True}], lr=0.1), straight, gradients)
    before = RowwiseAdamW([{"params": [resumed], "rowwise": True}], lr=0.1)
    run(before, resumed, gradients[:3])
    after = RowwiseAdamW([{"params": [resumed], "rowwise": True}], lr=0.1)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    run(after, resumed, gradients[3:])
    torch.testing.assert_close(straight, resumed, rtol=0, atol=0)
