"""Running a sweep with Ray Tune, and going on with one."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.stopper import Stopper

from learning.errors import UserError, shown
from orchestrator.files import child
from orchestrator.record_files import read_json, replace_record
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import Stopping
from tuning.following import Follower, Say, name_of
from tuning.jobs import FAILED, LIKE, NUMBER, RUN, STEP, Job, Runner
from tuning.outcome import is_enough
from tuning.records import Outcome, read_evaluations, read_lineage
from tuning.schedulers import make_scheduler
from tuning.searchers import Points, make_search, mutated
from tuning.settings import Mode, SweepSettings
from tuning.space import Space
from tuning.trial import SweepTrial, values_of
from tuning.trial_tracking import Tracking
from tuning.tune_state import INTERRUPTS, STATE, Keeper, quiet, restore_state

RUNS, TRIALS = "trials", "trials.json"
"""In a sweep's directory: the runs of all trials, and what became of them."""
WORST = {"max": 0.0, "min": 1e9}
"""Of an accuracy and a loss, for trials that cannot be trained; finite, for means and medians."""

Bundles = Callable[[Mapping[str, Any]], list[dict[str, float]]]
"""The varied settings of a trial to what it reserves: its own process first, then each block."""

_RESUME = tune.ResumeConfig(
    errored=tune.ResumeConfig.ResumeType.RESUME  # pyright: ignore[reportArgumentType] - says str
)


@dataclass(frozen=True)
class Sweep:
    """A sweep whose every setting is checked.

    Attributes:
        directory: absolute, and there.
        steps: of a whole run.
        every: steps between its evaluations.
        points: the values of trials that are known beforehand, by number.
    """

    settings: SweepSettings
    space: Space
    directory: Path
    steps: int
    every: int
    points: Points
    run: Runner
    bundles: Bundles

    @property
    def trials(self) -> int:
        """How many there will be."""
        return len(self.points) or self.settings.trials or 0

    @property
    def runs(self) -> Path:
        """Where the runs of all trials are."""
        return self.directory / RUNS


def run_sweep(
    sweep: Sweep,
    say: Say,
    tracking: Tracking | None,
    *,
    resume: bool,
    stopping: Stopping | None = None,
) -> bool:
    """Run all trials, or the rest of them; Ray is connected.

    Args:
        stopping: ends the trials in order when somebody asks for it, in the main thread.

    Returns:
        Whether the sweep is over; False: it was interrupted.
    """
    settings = sweep.settings
    known = resume and restore_state(sweep.directory)
    changing = mutated(settings)
    job = Job(
        sweep.run,
        sweep.runs,
        sweep.points,
        settings.metric,
        WORST[settings.better],
        hands_over=bool(changing),
    )
    trainable = tune.with_resources(
        tune.with_parameters(SweepTrial, job=job),
        resources=lambda config: tune.PlacementGroupFactory(
            sweep.bundles(values_of(config, sweep.points))
        ),
    )
    enough = Enough(settings)
    keeper = Keeper(sweep.directory)
    stopping = stopping or Stopping()
    with stopping.patiently(), quiet(sweep.directory, sweep.trials):
        analysis = tune.run(
            trainable,
            name=STATE,
            storage_path=str(sweep.directory),
            config=dict.fromkeys((NUMBER, LIKE, *changing)) if sweep.points else {},
            num_samples=sweep.trials,
            search_alg=make_search(settings, sweep.space, sweep.points),
            max_concurrent_trials=None if sweep.points else settings.parallel,
            scheduler=make_scheduler(
                settings,
                sweep.space,
                sweep.steps,
                sweep.every,
                (lambda config: told_by(sweep, config)) if known else None,
            ),
            stop=enough,
            max_failures=settings.retries,
            checkpoint_config=tune.CheckpointConfig(
                # Donors of population based training must outlive who takes over from them.
                num_to_keep=max(4, sweep.trials) if changing else 2,
                checkpoint_at_end=False,
            ),
            reuse_actors=True,
            raise_on_failed_trial=False,
            verbose=0,
            callbacks=[
                Follower(
                    sweep.runs,
                    sweep.trials,
                    settings.metric,
                    say,
                    tracking,
                    lambda: _between_steps(keeper, stopping),
                )
            ],
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
            resume_config=_RESUME if known else None,
        )
    trials = analysis.trials or []
    save_trials(sweep, trials)
    if stopping.asked:
        return enough.reached  # Tune has ended those that were running, and calls them finished
    whole = len(trials) >= sweep.trials and all(t.is_finished() for t in trials)
    return whole or enough.reached


def _between_steps(keeper: Keeper, stopping: Stopping) -> None:
    keeper.look()
    if stopping.asked:
        signal.raise_signal(INTERRUPTS)


def told_by(sweep: Sweep, config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All that a trial has reported, by its first run's records."""
    path = sweep.runs / f"{config[NUMBER]:04d}"
    if path.exists():
        for evaluation in read_evaluations(RunDirectory.open(path)):
            yield {STEP: evaluation.steps, **evaluation.metrics}


def save_trials(sweep: Sweep, trials: list[Trial]) -> None:
    """Write down what Tune knows of the trials, for whoever reads the outcome."""
    records = []
    for trial in sorted(trials, key=lambda t: t.config[NUMBER]):
        result = trial.last_result or {}
        records.append(
            {
                "number": trial.config[NUMBER],
                "values": values_of(trial.config, sweep.points),
                "status": trial.status,
                "run": result.get(RUN),
                "failed": result.get(FAILED),
                "error": None if trial.error_file is None else str(trial.error_file),
            }
        )
    data = json.dumps(records, indent=2).encode()
    replace_record(sweep.directory / TRIALS, [data])


def read_outcomes(directory: Path) -> list[Outcome]:
    """What became of the trials of a sweep, by number.

    Raises:
        UserError: when the sweep has never come so far.
    """
    path = directory / TRIALS
    if not path.exists():
        raise UserError(f"{directory} has no {TRIALS} yet: go on with blocklocal tune --resume")
    outcomes = []
    for record in read_json(path, _trials, "go on with blocklocal tune --resume"):
        name = record["run"] or f"{record['number']:04d}"
        run = directory / RUNS / name
        there = run.is_dir()
        state = RunDirectory.open(run).state.status if there else None
        status, why = "stopped", ""
        if record["failed"]:
            status, why = "failed", record["failed"]
        elif record["status"] == Trial.ERROR:
            status, why = "lost", f"see {record['error']}"
        elif state == "finished":
            status = "finished"
        elif record["status"] != Trial.TERMINATED:
            status = "unfinished"
        outcomes.append(
            Outcome(
                record["number"],
                record["values"],
                status,
                run if there else None,
                read_lineage(directory / RUNS, name) if there else [],
                why,
            )
        )
    return outcomes


def _trials(content: Any) -> list[dict[str, Any]]:
    """The records of `save_trials`.

    Raises:
        LookupError, TypeError, ValueError: for anything else.
    """
    kinds = {"number": int, "values": dict, "status": str}
    kinds |= dict.fromkeys(("run", "failed", "error"), str | None)
    for record in content:
        for name, kind in kinds.items():
            if not isinstance(record[name], kind):
                raise TypeError(f"{name} is {shown(record[name], 40)}")
        if record["run"] is not None:
            child(Path(), record["run"], "run")
    return content


class Enough(Stopper):
    """Ends a sweep when its metric is good enough, or its time is over."""

    def __init__(self, settings: SweepSettings) -> None:
        self._metric = settings.metric
        self._mode: Mode = settings.better
        self._value, self._minutes = settings.stop.value, settings.stop.minutes
        self._began = time.monotonic()
        self.reached = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if self._value is not None and FAILED not in result:
            good = is_enough(result.get(self._metric), self._value, self._mode)
            self.reached = self.reached or good
        return False

    def stop_all(self) -> bool:
        late = self._minutes is not None and time.monotonic() - self._began > 60 * self._minutes
        self.reached = self.reached or late
        return self.reached
