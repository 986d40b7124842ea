import pytest
import torch
from tiny_task import TinyTask
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from plant_dist.config.schema import OptimConfig
from plant_dist.errors import TrainingError
from plant_dist.runtime.context import RunContext
from plant_dist.train.optim import (
    Averages,
    ParameterGroup,
    StartingPoint,
    Thaw,
    build_optimizer,
    check_groups,
    encoder_groups,
)

CPU = torch.device("cpu")
BETAS = (0.9, 0.999)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.ones(*shape))


def test_deeper_blocks_learn_more_slowly() -> None:
    config = OptimConfig(encoder_learning_rate=0.1, layer_decay=0.5, weight_decay=0.3)
    groups = encoder_groups([[parameter(2, 2)] for _ in range(3)], config)
    assert [group.learning_rate for group in groups] == pytest.approx([0.1, 0.05, 0.025])
    assert [group.depth for group in groups] == [1, 2, 3]
    assert {group.weight_decay for group in groups} == {0.3}


def test_a_frozen_encoder_has_no_groups() -> None:
    assert encoder_groups([[parameter(2, 2)]], OptimConfig(freeze_encoder=True)) == []


def test_only_matrices_decay() -> None:
    matrix, bias, column = parameter(2, 2), parameter(2), parameter(3, 1)
    group = ParameterGroup("g", [matrix, bias, column], learning_rate=0.5, weight_decay=0.1)
    optimizer = build_optimizer([group], BETAS, CPU)
    for one in (matrix, bias, column):
        one.grad = torch.zeros_like(one)
    optimizer.step()
    # Without a gradient Adam moves nothing; decoupled decay takes lr * decay of the weight.
    assert torch.allclose(matrix.detach(), torch.full((2, 2), 1 - 0.5 * 0.1))
    assert torch.equal(bias.detach(), torch.ones(2))
    assert torch.equal(column.detach(), torch.ones(3, 1))


def test_first_adam_step_is_the_learning_rate_of_each_group() -> None:
    slow, fast = parameter(2, 2), parameter(2, 2)
    groups = [ParameterGroup("slow", [slow], 0.01), ParameterGroup("fast", [fast], 0.2)]
    optimizer = build_optimizer(groups, BETAS, CPU)
    for one in (slow, fast):
        one.grad = torch.full_like(one, 3.0)
    optimizer.step()
    assert torch.allclose(slow.detach(), torch.full((2, 2), 1 - 0.01))
    assert torch.allclose(fast.detach(), torch.full((2, 2), 1 - 0.2))


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(TrainingError, match="no parameter is left"):
        build_optimizer([ParameterGroup("empty", [], 0.1)], BETAS, CPU)


def test_a_parameter_in_no_group_or_two_is_named() -> None:
    task = TinyTask(RunContext())
    groups = task.parameter_groups()
    check_groups(task.model, groups)
    with pytest.raises(TrainingError, match=r"head\.weight .* in 0"):
        check_groups(task.model, groups[1:])
    with pytest.raises(TrainingError, match=r"head\.weight .* in 2"):
        check_groups(task.model, [groups[0], *groups])
    task.model.head.weight.requires_grad_(False)
    with pytest.raises(TrainingError, match=r"head\.weight .* in 1"):
        check_groups(task.model, groups)


@pytest.mark.parametrize(
    ("epochs", "progress", "training"),
    [
        ((), 0.0, {0, 1, 2, 3, 4, 5}),
        ((1.0, 2.0), 0.0, {0}),
        ((1.0, 2.0), 0.99, {0}),
        ((1.0, 2.0), 1.0, {0, 1, 2, 3}),
        ((1.0, 2.0), 2.5, {0, 1, 2, 3, 4, 5}),
        ((0.0, 0.5), 0.0, {0, 1, 2, 3}),
        ((1.0, 2.0, 3.0, 4.0, 5.0, 6.0), 4.0, {0, 1, 2, 3, 4}),
    ],
)
def test_blocks_thaw_from_the_top(
    epochs: tuple[float, ...], progress: float, training: set[int]
) -> None:
    groups = [ParameterGroup(f"g{d}", [parameter(2, 2)], 0.1, depth=d) for d in range(6)]
    Thaw(groups, epochs).apply(progress)
    assert {g.depth for g in groups if g.parameters[0].requires_grad} == training


def test_the_start_is_mixed_into_trained_weights_and_into_no_others() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    model[1].requires_grad_(False)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    start = StartingPoint(model)
    with torch.no_grad():
        for one in model.parameters():
            one.add_(8.0)
    start.mix(0.25)
    for name, one in model.state_dict().items():
        # A quarter of the way back of 8; what does not train is left where it is.
        expected = before[name] + (6.0 if name.startswith("0.") else 8.0)
        torch.testing.assert_close(one, expected)


def test_averages_are_torchs() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    ours = Averages(model, decay=0.7)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    for step in range(1, 6):
        with torch.no_grad():
            for one in model.parameters():
                one.add_(torch.randn_like(one))
        ours.update(step)
        theirs.update_parameters(model)
    for name, one in theirs.module.named_parameters():
        assert torch.allclose(ours.tensors[name], one)


def test_swapping_twice_gives_the_weights_back() -> None:
    model = nn.Linear(2, 2)
    before = model.weight.detach().clone()
    averages = Averages(model, decay=0.5)
    with torch.no_grad():
        model.weight.zero_()
    averages.swap()
    assert torch.equal(model.weight, before)
    averages.swap()
    assert torch.equal(model.weight, torch.zeros(2, 2))
