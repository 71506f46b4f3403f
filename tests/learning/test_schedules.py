"""Learning-rate schedules equal torch's own, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.optim import lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import LRScheduler

from learning.policies.schedules import learning_rate_factor
from learning.settings import (
    ConstantSchedule,
    CosineSchedule,
    MultiStepSchedule,
    OneCycleSchedule,
    ScheduleSettings,
    WarmRestartsSchedule,
)

LR = 0.4


def torch_factors(make: Callable[[torch.optim.SGD], LRScheduler], steps: int) -> list[float]:
    """What torch's scheduler multiplies the learning rate by at each step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, factors = make(optimizer), []
    for _ in range(steps):
        factors.append(optimizer.param_groups[0]["lr"] / LR)
        optimizer.step()
        scheduler.step()
    return factors


def factors(schedule: ScheduleSettings, steps: int) -> list[float]:
    return [learning_rate_factor(schedule, step, steps) for step in range(steps)]


def assert_equal(schedule: ScheduleSettings, make, steps: int) -> None:
    expected = torch_factors(make, steps)
    assert factors(schedule, steps) == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_constant():
    assert factors(ConstantSchedule(), 5) == [1.0] * 5


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("steps", [1, 7, 100])
def test_cosine_equals_torch(steps, floor):
    assert_equal(
        CosineSchedule(floor=floor),
        lambda o: torch_schedulers.CosineAnnealingLR(o, steps, eta_min=floor * LR),
        steps,
    )


def test_warmup_is_linear_and_ends_at_the_learning_rate():
    got = factors(CosineSchedule(warmup=0.2, floor=0.1), 20)
    assert got[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    # The cosine takes the 16 steps that are left: half of them lead to the middle.
    assert got[12] == pytest.approx(0.55)
    assert got[4:] == pytest.approx(factors(CosineSchedule(floor=0.1), 16))


@pytest.mark.parametrize(
    ("rise", "steps"), [(0.3, 10), (0.5, 10), (0.95, 10), (0.05, 10), (0.3, 101), (0.95, 101)]
)
def test_one_cycle_equals_torch(rise, steps):
    assert_equal(
        OneCycleSchedule(rise=rise, start_divisor=10, final_divisor=50),
        lambda o: torch_schedulers.OneCycleLR(
            o,
            LR,
            total_steps=steps,
            pct_start=rise,
            div_factor=10,
            final_div_factor=50,
            cycle_momentum=False,
        ),
        steps,
    )


@pytest.mark.parametrize(("rise", "steps"), [(0.5, 2), (0.25, 4), (0.1, 10)])
def test_one_cycle_that_peaks_at_the_first_step(rise, steps):
    got = factors(OneCycleSchedule(rise=rise), steps)  # torch divides by zero here
    assert got[0] == pytest.approx(1.0)
    assert got == sorted(got, reverse=True)
    assert got[-1] == pytest.approx(1 / 25 / 1e4)


def test_one_cycle_of_few_steps_stays_within_bounds():
    for steps in range(1, 6):
        got = factors(OneCycleSchedule(), steps)
        assert all(0 < factor <= 1 + 1e-12 for factor in got)


@pytest.mark.parametrize("steps", [8, 100])
def test_multi_step_equals_torch(steps):
    assert_equal(
        MultiStepSchedule(milestones=(0.25, 0.5, 0.75), factor=0.2),
        lambda o: torch_schedulers.MultiStepLR(
            o, [steps // 4, steps // 2, 3 * steps // 4], gamma=0.2
        ),
        steps,
    )


@pytest.mark.parametrize(("period", "growth"), [(0.25, 1), (0.1, 2), (1.0, 1)])
def test_warm_restarts_equal_torch(period, growth):
    assert_equal(
        WarmRestartsSchedule(period=period, growth=growth, floor=0.05),
        lambda o: torch_schedulers.CosineAnnealingWarmRestarts(
            o, round(period * 100), T_mult=growth, eta_min=0.05 * LR
        ),
        100,
    )


def test_a_period_of_no_whole_step_still_ends():
    assert factors(WarmRestartsSchedule(period=0.01), 10) == [1.0] * 10
