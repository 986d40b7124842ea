import math

import pytest
import torch
from torch import nn

from plant_dist.runtime.context import RunContext
from plant_dist.runtime.engine import Engine


def prepared() -> tuple[Engine, nn.Module, torch.optim.Optimizer]:
    model = nn.Linear(3, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    engine = Engine(RunContext())
    return engine, engine.prepare(model, optimizer), optimizer


def test_a_step_is_plain_gradient_descent_and_clears_gradients() -> None:
    engine, model, _ = prepared()
    before = model.weight.detach().clone()
    x = torch.tensor([[1.0, 2.0, 3.0]])
    for last in (False, True):
        with engine.accumulate(model, last=last), engine.autocast():
            engine.backward(model(x).sum())
    norms, applied = engine.update([list(model.parameters())], None)
    assert applied
    assert norms.tolist() == pytest.approx([2 * 14**0.5] * 2)
    assert torch.allclose(model.weight, before - 0.5 * 2 * x)
    assert model.weight.grad is None


@pytest.mark.parametrize(("limit", "scale"), [(None, 1.0), (100.0, 1.0), (6.5, 0.5)])
def test_clip_scales_all_groups_together(limit: float | None, scale: float) -> None:
    # Norms 5 and 12: together 13.
    one, other, frozen = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    engine = Engine(RunContext())
    engine.prepare(nn.Linear(1, 1), torch.optim.SGD([one, other, frozen], lr=1.0))
    one.grad, other.grad = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 12.0])
    norms, _ = engine.update([[one], [other], [frozen]], limit)
    assert norms.tolist() == pytest.approx([5.0, 12.0, 0.0, 13.0])
    # Steps of rate 1 from 0 are the clipped gradients.
    assert one.tolist() == pytest.approx([-3 * scale, -4 * scale], rel=1e-5)
    assert other.tolist() == pytest.approx([0.0, -12 * scale], rel=1e-5)
    assert math.isclose(13 * scale, limit or 13.0) or limit == 100.0


def test_a_released_model_can_be_prepared_again() -> None:
    engine, model, raw = prepared()
    bare = engine.release(model)
    assert "_is_accelerate_prepared" not in vars(bare)
    again = Engine(RunContext()).prepare(bare, raw)
    assert again(torch.ones(1, 3)).shape == (1, 1)
