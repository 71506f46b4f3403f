"""Patience without waiting: a clock that only moves when somebody sleeps, and then for long."""

from __future__ import annotations

import pytest

from tuning import courier

PATIENCE = 600.0
"""Of runs and sweeps: seconds that no verdict depends on."""


class SleepersClock:
    """What a module that sleeps takes for `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1e9)  # nobody has patience for more than one attempt after it


def no_waits(patch: pytest.MonkeyPatch) -> None:
    """Let couriers of this process lose all their patience at once, between attempts that fail.

    However slow the processor is: what can be sent is sent, and what cannot is given up.
    """
    patch.setattr(courier, "time", SleepersClock())
