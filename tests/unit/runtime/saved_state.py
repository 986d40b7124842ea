"""A small training state, and everything that it holds, for tests of checkpoints."""

from __future__ import annotations

import torch
from torch import nn

from plant_dist.runtime.checkpoint import TrainingState


def made(seed: int, width: int = 3, averages: bool = True) -> TrainingState:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(width, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.AdamW(
        [
            {"params": model[0].parameters(), "lr": 0.1, "name": "first"},
            {"params": model[1].parameters(), "lr": 0.2, "name": "second"},
        ],
        betas=(0.8, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    kept = {n: torch.rand_like(p) for n, p in model.named_parameters()} if averages else {}
    return TrainingState(model, optimizer, schedule, kept)


def step(state: TrainingState) -> None:
    state.optimizer.zero_grad()
    state.model(torch.randn(5, state.model[0].in_features)).exp().sum().backward()
    state.optimizer.step()
    state.schedule.step()


def flat(state: TrainingState) -> dict[str, torch.Tensor]:
    """Everything a state holds, by name."""
    tensors = {f"model.{k}": v.clone() for k, v in state.model.state_dict().items()}
    tensors |= {f"averages.{k}": v.clone() for k, v in state.averages.items()}
    for index, entries in state.optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in entries.items()
        }
    rates = [group["lr"] for group in state.optimizer.param_groups]
    return tensors | {"rates": torch.tensor(rates, dtype=torch.float64)}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
