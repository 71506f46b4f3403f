"""One run of a study, or the costs of one combination, in a process of its own."""

from __future__ import annotations

import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch

from blocklocal.clusters import cluster
from blocklocal.compare.costs import measure_costs
from blocklocal.compare.records import CODE, run_settings
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import Prepared, prepare
from blocklocal.signals import SIGNALS
from blocklocal.training import train
from learning.agreement import agreement
from learning.errors import UserError
from learning.sequential import SequentialEngine
from orchestrator.events import Metrics
from orchestrator.storage import CheckpointSettings
from orchestrator.trainer import Observer
from orchestrator.version import code_version, processor

SECONDS = 0.5  # between lines on the way


Say = Callable[[dict[str, Any]], None]
"""Tells the parent {"step": ..., "steps": ...}, {"result": ...} or {"error": ...}."""


class Curve(Observer):
    """Observes a run: a row at each evaluation, with training metrics averaged since the last."""

    def __init__(self, prepared: Prepared, say: Say) -> None:
        self.rows: list[dict[str, float]] = []
        self._schedule = prepared.schedule
        self._epoch = prepared.batches.steps_per_epoch
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._say, self._said = say, 0.0

    def stepped(self, step: int, metrics: Metrics) -> None:
        for name, value in _flat("train", metrics).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1
        done, steps = step + 1, self._schedule.steps
        if done % self._schedule.evaluate_every == 0 or done == steps:
            means = {name: total / self._counts[name] for name, total in self._sums.items()}
            self.rows.append({"step": done, "epoch": done / self._epoch, **means})
            self._sums, self._counts = {}, {}
        if time.monotonic() - self._said >= SECONDS or done == steps:
            self._said = time.monotonic()
            self._say({"step": done, "steps": steps})

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self.rows[-1] |= _flat(split, metrics)

    def best(self) -> dict[str, float]:
        """The best validation metrics of the run, each by itself."""
        best: dict[str, float] = {}
        for row in self.rows:
            for name, value in row.items():
                if name.startswith("validation/"):
                    better = min if name.endswith("/loss") else max
                    best[name] = better(best.get(name, value), value)
        return best


def _flat(split: str, metrics: Metrics) -> dict[str, float]:
    return {f"{split}/{n}/{m}": v for n, values in metrics.items() for m, v in values.items()}


def run_one(config: RunConfig, say: Say) -> dict[str, Any]:
    """Train one configuration in a directory that is thrown away; returns its record."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        run = config.run.model_copy(update={"directory": Path(directory) / "run"})
        thrown_away = {"run": run, "checkpoints": CheckpointSettings()}
        with cluster(config):
            prepared = prepare(config.model_copy(update=thrown_away))
            curve = Curve(prepared, say)

            def probe(step: int, engine: SequentialEngine) -> Metrics:
                cosines = agreement(engine, step, prepared.batches.shard)
                return {block: {"agreement": cosine} for block, cosine in cosines.items()}

            result = train(prepared, [curve], probe=probe)
    return {
        "settings": run_settings(config),
        "metrics": result.metrics,
        "best": curve.best(),
        "curve": curve.rows,
        "labels": math.prod(prepared.dataset.target_shape),
        "seconds": round(time.perf_counter() - started, 1),
        **_made(),
    }


def costs_one(config: RunConfig, say: Say) -> dict[str, Any]:
    """Count what a step of one configuration costs; returns its record."""
    torch.set_num_threads(config.engine.resources.threads or 1)
    costs = measure_costs(prepare(config))
    return {"settings": run_settings(config), "costs": asdict(costs), **_made()}


def _made() -> dict[str, Any]:
    """What code made a record, on what machine."""
    version = code_version()
    return {
        "code": {name: version[name] for name in CODE},
        "processor": processor(),
        "cores": version["cpu_count"],
    }


def work(
    kind: Literal["run", "costs"],
    tree: dict[str, Any],
    connection: Connection,
    directory: str,
    environment: dict[str, str],
) -> None:
    """Do one job in a new process and tell its parent; when that is gone, so is this process.

    Args:
        tree: the settings.
        directory: the parent's, where relative paths and the user's own networks lie.
    """
    for number in SIGNALS:  # they are for the parent, which ends this one
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # what this one starts is not protected
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    sys.path.insert(0, directory)
    with suppress(RuntimeError):  # torch takes this once a process, before its first work
        torch.set_num_interop_threads(1)
    act = run_one if kind == "run" else costs_one
    try:
        with tempfile.TemporaryFile() as output:  # what a network prints would spoil the progress
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
            connection.send({"result": act(make_config(tree), connection.send)})
    except BrokenPipeError:
        os._exit(1)
    except UserError as error:
        connection.send({"error": str(error)})
    except Exception as error:  # a user's network may raise anything
        reason = " ".join(str(error).split())
        connection.send({"error": f"{type(error).__name__}: {reason}"})
