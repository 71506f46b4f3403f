"""What the driver of a sweep does as its trials report: lines on the terminal, and MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial

from tuning.jobs import FAILED, LIKE, NUMBER, RUN, STEP
from tuning.tracking import Status
from tuning.trial_tracking import Tracking

Say = Callable[[str], None]


class Follower(tune.Callback):
    """Hears of every trial from Tune.

    Args:
        directory: of all runs of the sweep.
        trials: how many there will be.
        tracking: None where nothing is tracked.
    """

    def __init__(
        self,
        directory: Path,
        trials: int,
        metric: str,
        say: Say,
        tracking: Tracking | None,
        step_end: Callable[[], None],
    ) -> None:
        self._directory, self._trials, self._metric = directory, trials, metric
        self._say, self._tracking, self._step_end = say, tracking, step_end
        self._over: set[str] = set()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        self._step_end()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        run = self._directory / result[RUN]
        if self._tracking is not None and run.exists() and FAILED not in result:
            took_over = run.name != name_of(trial)
            values = {k: v for k, v in trial.config.items() if k not in (NUMBER, LIKE)}
            self._tracking.told(name_of(trial), run, result, values if took_over else {})

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        result = trial.last_result or {}
        failed = result.get(FAILED)
        if failed:
            self._close(trial, trials, f"failed: {failed}", "FAILED", failed)
        else:
            value = result.get(self._metric)
            shown = "" if value is None else f"{self._metric} {value:.4g}"
            self._close(trial, trials, f"{shown} at step {result.get(STEP)}", "FINISHED")

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        why = f"lost: see {trial.error_file}"
        self._close(trial, trials, why, "FAILED", why)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        self._say(f"trial {name_of(trial)} was lost and goes on from its last checkpoint")

    def _close(
        self, trial: Trial, trials: list[Trial], what: str, status: Status, why: str = ""
    ) -> None:
        name = name_of(trial)
        if name in self._over:
            return
        self._over.add(name)
        done = sum(t.is_finished() or name_of(t) in self._over for t in trials)
        self._say(f"{done}/{self._trials}  trial {name}  {what}")
        run = (trial.last_result or {}).get(RUN) or name
        if self._tracking is not None:
            self._tracking.over(name, self._directory / run, status, why)


def name_of(trial: Trial) -> str:
    """What a trial is called: its number."""
    return f"{trial.config[NUMBER]:04d}"
