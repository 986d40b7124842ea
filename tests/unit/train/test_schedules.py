from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_task import PLAIN
from torch.optim import lr_scheduler

from plant_dist.train.optim import build_schedule, multiplier

SCHEDULES = ("constant", "linear", "cosine", "sgdr", "one_cycle")


def curve(schedule: str, total: int, warmup: float = 0.0, cycles: int = 1) -> list[float]:
    settings = replace(PLAIN, schedule=schedule, warmup_fraction=warmup, sgdr_cycles=cycles)
    return [multiplier(settings, step, total) for step in range(total)]


def rates_of_torch(make: object, total: int, peak: float = 1.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak)
    schedule = make(optimizer)  # type: ignore[operator]
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_linear_with_warmup_by_hand() -> None:
    expected = [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert curve("linear", 10, warmup=0.2) == pytest.approx(expected)


def test_constant_warms_up_and_stays() -> None:
    assert curve("constant", 6, warmup=0.5) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_sgdr_restarts_by_hand() -> None:
    # Two cycles of four steps: cosine at 0, 1/4, 1/2, 3/4 of the way, twice.
    half = [1.0, 0.8535534, 0.5, 0.1464466]
    assert curve("sgdr", 8, cycles=2) == pytest.approx([*half, *half], abs=1e-6)


@pytest.mark.parametrize(
    ("schedule", "cycles", "make"),
    [
        ("linear", 1, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=40)),
        ("cosine", 1, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40)),
        ("sgdr", 4, lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=10)),
    ],
)
def test_equal_to_torch_without_warmup(schedule: str, cycles: int, make: object) -> None:
    assert curve(schedule, 40, cycles=cycles) == pytest.approx(rates_of_torch(make, 40), abs=1e-6)


@pytest.mark.parametrize(("total", "rise"), [(40, 0.3), (100, 0.1), (10, 0.5)])
def test_one_cycle_is_torchs(total: int, rise: float) -> None:
    expected = rates_of_torch(
        lambda o: lr_scheduler.OneCycleLR(
            o, max_lr=1.0, total_steps=total + 1, pct_start=rise, cycle_momentum=False
        ),
        total,
    )
    # torch wants one step more than it is given rates for.
    settings = replace(PLAIN, schedule="one_cycle", warmup_fraction=rise)
    found = [multiplier(settings, step, total + 1) for step in range(total)]
    assert found == pytest.approx(expected, abs=1e-9)


@given(
    schedule=st.sampled_from(SCHEDULES),
    total=st.integers(1, 200),
    warmup=st.floats(0, 1),
    cycles=st.integers(1, 5),
)
def test_every_step_has_a_rate_above_zero_and_at_most_the_peak(
    schedule: str, total: int, warmup: float, cycles: int
) -> None:
    rates = curve(schedule, total, warmup, cycles)
    assert all(0 < rate <= 1 for rate in rates)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_scales_each_groups_own_peak(schedule: str) -> None:
    settings = replace(PLAIN, schedule=schedule, warmup_fraction=0.2, sgdr_cycles=2)
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[0], "lr": 0.5}, {"params": weights[1]}], lr=2.0)
    built = build_schedule(optimizer, settings, 10)
    for step in range(10):
        expected = multiplier(settings, step, 10)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates == pytest.approx([0.5 * expected, 2.0 * expected])
        optimizer.step()
        built.step()
