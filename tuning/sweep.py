"""Running a sweep with Ray Tune, and going on with one.

Tune's own state is in `tune/` of the sweep's directory: pickles that only Ray reads. Beside it is a
copy of the newest whole state, since a driver that is killed while it writes leaves half of one.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.stopper import Stopper

from learning.errors import UserError
from orchestrator.files import replace_file
from orchestrator.rundir import RunDirectory
from tuning.following import Follower, Say, Tracking, name_of
from tuning.records import Outcome, read_evaluations, read_lineage
from tuning.schedulers import make_scheduler
from tuning.searchers import Points, make_search, mutated
from tuning.settings import SweepSettings
from tuning.space import Space
from tuning.trial import FAILED, NUMBER, RUN, STEP, Job, Runner, SweepTrial, values_of

STATE, KEPT, RUNS, TRIALS = "tune", "tune.kept", "trials", "trials.json"
"""In a sweep's directory: Tune's state, its copy, the runs of all trials, what became of them."""
SAVE_SECONDS = 2.0
WORST = {"max": 0.0, "min": 1e9}
"""Of an accuracy and a loss, for trials that cannot be trained; finite, for means and medians."""

Bundles = Callable[[Mapping[str, Any]], list[dict[str, float]]]
"""The varied settings of a trial to what it reserves: its own process first, then each block."""

_RESUME = tune.ResumeConfig(
    errored=tune.ResumeConfig.ResumeType.RESUME  # pyright: ignore[reportArgumentType] - says str
)
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # run directories have it all
    "TUNE_GLOBAL_CHECKPOINT_S": str(SAVE_SECONDS),
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


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


def run_sweep(sweep: Sweep, say: Say, tracking: Tracking | None, *, resume: bool) -> bool:
    """Run all trials, or the rest of them; Ray is connected.

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
    with _quiet():
        analysis = tune.run(
            trainable,
            name=STATE,
            storage_path=str(sweep.directory),
            config=dict.fromkeys((NUMBER, *changing)) if sweep.points else {},
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
                Follower(sweep.runs, sweep.trials, settings.metric, say, tracking, keeper.look)
            ],
            trial_name_creator=name_of,
            trial_dirname_creator=name_of,
            resume_config=_RESUME if known else None,
        )
    trials = analysis.trials or []
    save_trials(sweep, trials)
    whole = len(trials) >= sweep.trials and all(t.is_finished() for t in trials)
    return whole or enough.reached


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
    replace_file(sweep.directory / TRIALS, [data])


def read_outcomes(directory: Path) -> list[Outcome]:
    """What became of the trials of a sweep, by number.

    Raises:
        UserError: when the sweep has never come so far.
    """
    path = directory / TRIALS
    if not path.exists():
        raise UserError(f"{directory} has no {TRIALS} yet: go on with blocklocal tune --resume")
    outcomes = []
    for record in json.loads(path.read_text()):
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


class Enough(Stopper):
    """Ends a sweep when its metric is good enough, or its time is over."""

    def __init__(self, settings: SweepSettings) -> None:
        self._metric, self._more = settings.metric, settings.better == "max"
        self._value, self._minutes = settings.stop.value, settings.stop.minutes
        self._began = time.monotonic()
        self.reached = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        value = result.get(self._metric)
        if self._value is not None and value is not None and FAILED not in result:
            good = value >= self._value if self._more else value <= self._value
            self.reached = self.reached or good
        return False

    def stop_all(self) -> bool:
        late = self._minutes is not None and time.monotonic() - self._began > 60 * self._minutes
        self.reached = self.reached or late
        return self.reached


class Keeper:
    """Keeps a copy of Tune's newest whole state."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._looked, self._kept = float("-inf"), 0

    def look(self) -> None:
        """Copy the state if there is a newer one."""
        now = time.monotonic()
        if now - self._looked < SAVE_SECONDS:
            return
        self._looked = now
        newest = _newest(self._directory / STATE)
        if newest is None or newest.stat().st_mtime_ns == self._kept or not _is_whole(newest):
            return
        self._kept = newest.stat().st_mtime_ns
        new, kept = self._directory / f"{KEPT}.new", self._directory / KEPT
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        for file in _files(newest.parent):
            shutil.copy2(file, new)
        if _is_whole(new / newest.name):  # Tune writes whenever it likes
            shutil.rmtree(kept, ignore_errors=True)
            os.rename(new, kept)


def restore_state(directory: Path) -> bool:
    """Make sure that Tune finds a whole state; False: there is none, and it begins anew.

    All trials find their runs again even then, since points and numbers of trials are the same.
    """
    state, kept = directory / STATE, directory / KEPT
    newest = _newest(state)
    if newest is not None and _is_whole(newest):
        return True
    for damaged in _files(state):
        damaged.unlink()
    whole = _newest(kept)
    if whole is None or not _is_whole(whole):
        return False
    state.mkdir(exist_ok=True)
    for file in _files(kept):
        shutil.copy2(file, state)
    return True


def _files(directory: Path) -> list[Path]:
    """The files of Tune's state: trials as JSON, and what its searcher keeps."""
    if not directory.is_dir():
        return []
    return [f for f in directory.iterdir() if f.is_file() and f.suffix in (".json", ".pkl")]


def _newest(directory: Path) -> Path | None:
    """The file of the trials that Tune would go on from."""
    return max(
        (f for f in _files(directory) if f.name.startswith("experiment_state-")),
        key=lambda f: f.name,
        default=None,
    )


def _is_whole(file: Path) -> bool:
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(other.stat().st_size for other in _files(file.parent))


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the terminal to our own lines; Tune reads some settings from the environment."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    logger = logging.getLogger("ray.tune")
    level = logger.level
    os.environ.update(_ENVIRONMENT)
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
