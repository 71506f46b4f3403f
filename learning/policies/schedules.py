"""Learning-rate schedules as pure functions of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from learning.settings import (
    ConstantSchedule,
    CosineSchedule,
    MultiStepSchedule,
    OneCycleSchedule,
    ScheduleSettings,
)


def learning_rate_factor(schedule: ScheduleSettings, step: int, steps: int) -> float:
    """The factor on the learning rate at `step` of `steps` (0-based)."""
    if isinstance(schedule, ConstantSchedule):
        return 1.0
    if isinstance(schedule, CosineSchedule):
        warmup = round(schedule.warmup * steps)
        if step < warmup:
            return (step + 1) / warmup
        return _cosine(1.0, schedule.floor, (step - warmup) / max(1, steps - warmup))
    if isinstance(schedule, OneCycleSchedule):
        start = 1.0 / schedule.start_divisor
        # The same knots as torch.optim.lr_scheduler.OneCycleLR.
        peak, last = schedule.rise * steps - 1.0, steps - 1.0
        if step <= peak:
            return _cosine(start, 1.0, step / peak if peak else 1.0)
        return _cosine(1.0, start / schedule.final_divisor, (step - peak) / (last - peak))
    if isinstance(schedule, MultiStepSchedule):
        passed = sum(step >= round(m * steps) for m in schedule.milestones)
        return schedule.factor**passed
    period, start = max(1, round(schedule.period * steps)), 0
    if schedule.growth == 1:
        start = step // period * period
    while step - start >= period:
        start += period
        period *= schedule.growth
    return _cosine(1.0, schedule.floor, (step - start) / period)


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * min(1.0, share))) / 2
