"""A trial: one run, told step by step to Tune from a thread of the trial's actor (life.py).

The run's directory is the truth: whatever ends this process, the next life of the trial reads there
how far it came, tells Tune again what it may have missed, and trains on from the last checkpoint.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray import tune

from learning.errors import shown
from orchestrator.checkpoints import Checkpoints
from orchestrator.files import create_file
from orchestrator.record_files import read_json
from orchestrator.rundir import RunDirectory
from orchestrator.storage import LocalStorage
from tuning.jobs import LIKE, NUMBER, RUN, STEP, Job, Request
from tuning.life import Life
from tuning.records import FROM
from tuning.space import Values

_POINTER = "pointer.json"


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
        self._life: Life | None = None
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
            self._life = Life(self._job, request)
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
        pointer = read_json(Path(checkpoint) / _POINTER, _pointer)
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


def _pointer(content: Any) -> dict[str, Any]:
    for name, kind in {NUMBER: int, RUN: str, STEP: int}.items():
        if type(content[name]) is not kind:
            raise TypeError(f"{name} is {shown(content[name], 40)}")
    return content


def copy_checkpoint(source: Checkpoints, step: int, to: Path) -> None:
    """Copy a checkpoint, verified, into a directory of its own."""
    found = source.load(step)
    Checkpoints(LocalStorage(to)).save(
        found.step,
        found.state,
        plan_hash=found.plan_hash,
        rule=found.rule,
        metrics=found.metrics,
        fingerprints=found.fingerprints,
        preprocessing=found.preprocessing,
    )
