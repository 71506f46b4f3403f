"""A trial: one run, told step by step to Tune from a thread of the trial's actor.

    Tune          train() ──▶ waits ◀── report        save()      stop()
                                ▲                       │            │
    the thread    training ──▶ evaluated, saved ──▶ waits for train() or the end

The run's directory is the truth: whatever ends this process, the next life of the trial reads there
how far it came, tells Tune again what it may have missed, and trains on from the last checkpoint.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from ray import tune

from learning.errors import UserError
from orchestrator.checkpoints import Checkpoints
from orchestrator.files import create_file
from orchestrator.rundir import RunDirectory
from orchestrator.storage import LocalStorage
from orchestrator.trainer import StopTraining
from tuning.records import FROM
from tuning.space import Values

NUMBER, LIKE = "trial", "like"
"""Keys in what Tune knows of a trial: its number, and whose point it trains, its own or that of the
trial that it has taken over from. All other keys are varied settings."""
STEP, FAILED, RUN = "step", "failed", "run"
"""What a report has besides metrics; `failed` is the sentence of a trial that cannot go on."""
_POINTER = "pointer.json"


class Listener(Protocol):
    """Who trains a trial tells it how it goes; both methods raise StopTraining when it is over."""

    def tell(self, steps: int, metrics: Mapping[str, float], last: bool) -> None:
        """Report an evaluation, whose checkpoint is complete, and wait to be asked for more.

        Args:
            metrics: by name, `validation/block2/loss` and so on.
            last: whether it is that of the last step.

        Raises:
            UserError: when the metric that all trials are compared by is not among them.
        """
        ...

    def check(self) -> None:
        """Find out whether to go on; called at each step."""
        ...


@dataclass(frozen=True)
class Request:
    """What to train.

    Attributes:
        number: of the trial.
        values: dotted key to value.
        directory: of the run: a new one, or one that this trial has left.
        start: checkpoints of another trial that a new run begins with.
        told: Tune knows all evaluations up to this step.
        hands_over: what is told may be taken over by others, so that its checkpoint must be there.
    """

    number: int
    values: Values
    directory: Path
    start: Path | None
    told: int
    hands_over: bool = False


class Runner(Protocol):
    """Trains a request to its end."""

    def __call__(self, request: Request, listener: Listener) -> None:
        """Train, or go on; the listener hears again of evaluations after `request.told`.

        Raises:
            UserError: for what cannot be trained.
            StopTraining: that the listener raised.
        """
        ...


@dataclass(frozen=True)
class Job:
    """What all trials of a sweep share.

    Attributes:
        directory: of all runs of the sweep; every node sees it.
        points: the values of trials that are known beforehand, by number.
        metric: that every report must have.
        worst: what a trial that cannot be trained is worth.
        hands_over: whether trials go on from each other's states.
    """

    run: Runner
    directory: Path
    points: Mapping[int, Values]
    metric: str
    worst: float
    hands_over: bool = False


def values_of(config: Mapping[str, Any], points: Mapping[int, Values]) -> Values:
    """The varied settings of a trial: those known beforehand, and over them what Tune says."""
    said = {key: value for key, value in config.items() if key not in (NUMBER, LIKE)}
    return {**points.get(config.get(LIKE, config[NUMBER]), {}), **said}


class SweepTrial(tune.Trainable):
    """The trainable of a sweep."""

    def setup(self, config: dict[str, Any], job: Job | None = None) -> None:
        assert job is not None
        self._job = job
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        self._number: int = config[NUMBER]
        self._values = values_of(config, self._job.points)
        self._life: _Life | None = None
        self._run, self._step = f"{self._number:04d}", 0
        self._start: Path | None = None

    def step(self) -> dict[str, Any]:
        if self._life is None:
            directory = self._job.directory / self._run
            request = Request(
                self._number,
                self._values,
                directory,
                self._start,
                self._step,
                self._job.hands_over,
            )
            self._life = _Life(self._job, request)
        told = self._life.next()
        self._step = told[STEP]
        return {**told, RUN: self._run}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        pointer = {NUMBER: self._number, RUN: self._run, STEP: self._step}
        create_file(Path(checkpoint_dir) / _POINTER, [json.dumps(pointer).encode()])
        if self._job.hands_over and self._step:
            copy_checkpoint(
                RunDirectory.open(self._job.directory / self._run).checkpoints,
                self._step,
                Path(checkpoint_dir) / "state",
            )

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        assert isinstance(checkpoint, str)  # Tune's annotation is of older trainables
        pointer = json.loads((Path(checkpoint) / _POINTER).read_text())
        self._step = pointer[STEP]
        if pointer[NUMBER] == self._number:
            self._run = pointer[RUN]
            return
        # The values too: the same state may be taken over twice, with other settings.
        mark = hashlib.sha256(json.dumps(self._values, sort_keys=True).encode()).hexdigest()[:8]
        self._run = f"{self._number:04d}-from-{pointer[NUMBER]:04d}-{self._step}-{mark}"
        # Kept as long as the sweep: with it the run can be repeated.
        self._start = self._job.directory / f"{self._run}.start"
        if not (self._start / FROM).exists():
            state = Checkpoints(LocalStorage(Path(checkpoint) / "state"))
            copy_checkpoint(state, self._step, self._start)
            create_file(self._start / FROM, [pointer[RUN].encode()])  # last: now it is whole

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        if self._life is not None:
            self._life.end()
            self._life = None
        gc.collect()  # networks are full of circles, and the next trial needs the memory
        if torch.cuda.is_initialized():  # in a trial of one process; others may share its GPU
            torch.cuda.empty_cache()


class _Life:
    """A thread that trains, and waits at each report until it is asked for the next."""

    def __init__(self, job: Job, request: Request) -> None:
        self._job, self._request = job, request
        self._reports: queue.SimpleQueue[dict[str, Any] | BaseException | None]
        self._reports = queue.SimpleQueue()
        self._go = threading.Semaphore(0)
        self._over = False
        self._last: dict[str, Any] = {}
        self._waits = False
        self._thread = threading.Thread(target=self._train, name="trial", daemon=True)
        self._thread.start()

    def next(self) -> dict[str, Any]:
        """Wait for the next report; the last one, again and done, at the end."""
        if self._waits:
            self._waits = False
            self._go.release()
        told = self._take()
        if FAILED not in told and told.pop("last"):
            self._go.release()  # let it finish: a trial that is done is stopped at once
            told = {**told, **self._take(), "done": True}
        else:
            self._waits = True
        self._last = told
        return told

    def _take(self) -> dict[str, Any]:
        told = self._reports.get()
        if isinstance(told, UserError):
            return self._failed(str(told))
        if isinstance(told, BaseException):
            raise told
        return told or {}

    def _failed(self, sentence: str) -> dict[str, Any]:
        """What Tune hears of a trial that would fail again: no reason to try."""
        before = {STEP: self._request.told, **self._last}
        return {**before, self._job.metric: self._job.worst, FAILED: sentence, "done": True}

    def end(self) -> None:
        """End the thread and what it holds."""
        self._over = True
        self._go.release()
        self._thread.join()

    def _train(self) -> None:
        try:
            self._job.run(self._request, self)
        except StopTraining:
            return
        except BaseException as error:
            self._reports.put(error)
            return
        self._reports.put(None)

    def check(self) -> None:
        if self._over:
            raise StopTraining

    def tell(self, steps: int, metrics: Mapping[str, float], last: bool) -> None:
        self.check()
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if not math.isfinite(value := metrics.get(self._job.metric, 0.0)):
            raise UserError(
                f"{self._job.metric} is {value} after {steps} steps: leave these values out of the "
                "space, or lower optimizer.lr"
            )
        if self._job.metric not in finite:
            raise UserError(
                f"this run has no {self._job.metric}: choose a sweep.metric that all rules of the "
                "space have"
            )
        self._reports.put({STEP: steps, **finite, "last": last})
        self._go.acquire()
        self.check()


def copy_checkpoint(source: Checkpoints, step: int, to: Path) -> None:
    """Copy a checkpoint, verified, into a directory of its own."""
    found = source.load(step)
    Checkpoints(LocalStorage(to)).save(
        found.step,
        found.state,
        plan_hash=found.plan_hash,
        rule=found.rule,
        metrics=found.metrics,
    )
