"""World 1: every collective gives back what it got. Two processes: tests/distributed."""

import torch

from plant_dist.runtime.collectives import (
    any_rank,
    barrier,
    broadcast_object,
    gather_objects,
    mean_across,
    sum_across,
)
from plant_dist.runtime.context import RunContext

ALONE = RunContext()


def test_one_process_needs_no_group() -> None:
    values = torch.tensor([1, 2])
    assert torch.equal(sum_across(ALONE, values), values)
    assert torch.equal(mean_across(ALONE, torch.tensor(3.0)), torch.tensor(3.0))
    assert any_rank(ALONE, True) is True
    assert any_rank(ALONE, False) is False
    assert gather_objects(ALONE, "a") == ["a"]
    assert broadcast_object(ALONE, {"b": 1}) == {"b": 1}
    barrier(ALONE)


def test_the_sum_is_a_new_tensor() -> None:
    values = torch.zeros(2)
    sum_across(ALONE, values).add_(1)
    assert torch.equal(values, torch.zeros(2))
