"""Schedulers after a resume, and population based training within its ranges."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler

from blocklocal.sweep_file import make_settings
from tuning.schedulers import HyperBand, make_scheduler
from tuning.space import Space

SPACE = Space.read({"optimizer.lr": {"loguniform": [0.001, 0.1]}}, ("optimizer.lr",), ())
METRIC = "validation/accuracy"


class FakeTrial(SimpleNamespace):
    """As much of a trial as schedulers look at."""

    def __init__(self, number: int, over: bool = False) -> None:
        super().__init__(trial_id=f"t{number}", config={"trial": number}, over=over)

    def is_finished(self) -> bool:
        return self.over

    def __hash__(self) -> int:
        return hash(self.trial_id)


CONTROLLER = SimpleNamespace(get_live_trials=list)


def decision(tree: Any, told: Any) -> str:
    """What becomes of a poor trial after three good ones, which ended before a resume."""
    scheduler: Any = make_scheduler(make_settings(tree), SPACE, 200, 40, told)
    for number in range(3):
        scheduler.on_trial_add(CONTROLLER, FakeTrial(number, over=True))
    poor = FakeTrial(9)
    scheduler.on_trial_add(CONTROLLER, poor)
    return scheduler.on_trial_result(CONTROLLER, poor, {"step": 40, METRIC: 0.1})


@pytest.mark.parametrize("kind", ["asha", "median"])
def test_schedulers_know_what_was_reported_before_a_resume(kind: str) -> None:
    def told(config: Any) -> list[dict[str, Any]]:
        return [{"step": 40, METRIC: 0.9}, {"step": 80, METRIC: 0.95}]

    assert decision({"scheduler": kind}, told) == TrialScheduler.STOP
    assert decision({"scheduler": kind}, None) == TrialScheduler.CONTINUE
    assert decision({"scheduler": kind}, lambda config: []) == TrialScheduler.CONTINUE


def test_hyperband_waits_for_nobody_who_was_over_before_a_resume() -> None:
    scheduler: Any = make_scheduler(make_settings({"scheduler": "hyperband"}), SPACE, 200, 40, None)
    assert isinstance(scheduler, HyperBand)
    scheduler.on_trial_add(CONTROLLER, FakeTrial(0, over=True))
    scheduler.on_trial_add(CONTROLLER, FakeTrial(1))
    ((bracket,),) = scheduler._hyperbands
    assert [trial.trial_id for trial in bracket.current_trials()] == ["t1"]


def test_mutated_values_stay_within_their_ranges() -> None:
    tree = {"scheduler": {"kind": "pbt", "mutate": ["optimizer.lr"], "factors": [0.1, 10]}}
    scheduler: Any = make_scheduler(make_settings(tree), SPACE, 200, 40, None)
    for value in (0.001, 0.1, 0.05):
        for _ in range(20):
            old = {"trial": 1, "optimizer.lr": value}
            new, _ = scheduler._get_new_config(FakeTrial(2), SimpleNamespace(config=old))
            assert 0.001 <= new["optimizer.lr"] <= 0.1
            assert new["trial"] == 2  # it takes over a state, not the donor's place
