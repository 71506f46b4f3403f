"""A clock that only moves when somebody sleeps, so that no verdict depends on the processor."""

from __future__ import annotations

import pytest


class Clock:
    """What a module takes for `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now

    def time_ns(self) -> int:
        return round(self.now * 1e9)

    def monotonic_ns(self) -> int:
        return round(self.now * 1e9)

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class _Impatient(Clock):
    """Each sleep takes longer than anybody's patience."""

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e9)


def no_waits(patch: pytest.MonkeyPatch) -> None:
    """Let couriers of this process lose their patience at once, after an attempt that fails."""
    patch.setattr("tuning.courier.time", _Impatient())


PATIENCE = 600.0
"""Seconds that the end of a tracked run waits in tests, where MLflow does answer."""
