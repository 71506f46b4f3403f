"""The run of a trial: prepared, trained and gone on with inside the trial's actor."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklocal.config import RunConfig, dotted, make_config
from blocklocal.identity import Made, check_settings, differences, made_of, short
from blocklocal.preparation import Prepared, prepare
from blocklocal.resuming import recorded, start_of
from blocklocal.sweep_file import varied
from blocklocal.training import resume, train
from learning.errors import UserError
from orchestrator.events import Metrics
from orchestrator.placement import even_cpus
from orchestrator.record_files import writing
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import Observer
from tuning.jobs import Listener, Request
from tuning.records import flatten, read_evaluations
from tuning.space import Values

LEAVING_SECONDS = 60.0
"""For the last life of a trial to leave its run: its process may have just been told to end."""
LEAST_SHARE = 0.001
"""Of the resource that every node has 1 of, by its address: enough to be there."""
_SHARED = ("engine.resources.threads",)
"""What a trial keeps from its first life, whatever share of the machine it has now."""


@dataclass(frozen=True)
class TrialRuns:
    """How the trials of a sweep are run.

    Attributes:
        base: the configuration that trials change.
        cpus: of the cluster that one trial may have.
        cores: of a machine that one trial may have.
        node: address of the node with the sweep's directory, where others may not see it; None:
            there is no other.
        varied: settings that differ from trial to trial.
    """

    base: Mapping[str, Any]
    cpus: float
    cores: int
    node: str | None = None
    varied: frozenset[str] = frozenset()

    def config(self, values: Values) -> RunConfig:
        """The configuration of a trial, with what it reserves.

        Raises:
            UserError: when these values do not go together.
        """
        config = varied(self.base, values)
        engine, resources = config.engine, config.engine.resources
        blocks = config.blocks.count
        actors = blocks if engine.kind == "ray" else 1
        resources = resources.model_copy(
            update={
                "cpus": resources.cpus or even_cpus(self.cpus, actors * config.lanes.min),
                "threads": resources.threads or max(1, self.cores // actors),
            }
        )
        # Batches are made by block 1: another process would take more than it gives.
        engine = engine.model_copy(
            update={"resources": resources, "source": engine.source or "block1"}
        )
        tracking = config.tracking.model_copy(update={"enabled": False})
        return config.model_copy(update={"engine": engine, "tracking": tracking})

    def bundles(self, values: Mapping[str, Any]) -> list[dict[str, float]]:
        """What a trial reserves: a place for its own process, which waits, then each block.

        That process writes the run, so that it stays where the sweep's directory is. A feedback
        module is in its block's bundle, and so is what makes the batches.
        """
        config = self.config(dict(values))
        resources = config.engine.resources
        assert resources.cpus is not None and resources.threads is not None
        if config.engine.kind == "sequential":
            return [{"CPU": min(float(resources.threads), max(self.cpus, 0.01))}]
        gpus = {"GPU": resources.gpus} if resources.gpus else {}
        block = {"CPU": resources.cpus, **gpus}
        own = {} if self.node is None else {f"node:{self.node}": LEAST_SHARE}
        return [own, *(dict(block) for _ in range(config.lanes.min * config.blocks.count))]

    def __call__(self, request: Request, listener: Listener) -> None:
        """Train a trial to its end, or go on with it; see `tuning.jobs.Runner`."""
        if not request.directory.parent.is_dir():
            raise UserError(
                f"this node does not see {request.directory.parent}: use engine.kind = ray, whose "
                "trials write where blocklocal tune runs, or keep sweep.directory on a file system "
                "that all nodes share"
            )
        config = self._named(self.config(request.values), request)
        left = self._left(request.directory, config)
        if left is None:
            prepared = prepare(config)
            train(prepared, [Teller(listener, prepared.schedule.steps)])
            return
        run, made = left
        old = make_config(run.config)
        check_settings(made, run, old)
        resources = config.engine.resources.model_copy(
            update={"threads": old.engine.resources.threads}  # results depend on it
        )
        engine = config.engine.model_copy(update={"resources": resources})
        begun = config.run.model_copy(update={"start": old.run.start})
        config = config.model_copy(update={"engine": engine, "run": begun})
        prepared = prepare(config, plan=run.plan, made=made)
        _tell_again(run, prepared, request, listener)
        if run.state.status != "finished":
            teller = Teller(listener, prepared.schedule.steps)
            resume(prepared, run, [teller], patience=LEAVING_SECONDS, made=made)

    def _left(self, directory: Path, config: RunConfig) -> tuple[RunDirectory, Made] | None:
        """What an earlier life of this trial has left, if it trained with these settings.

        A sweep that was killed may have begun a trial that its searcher, brought back to a moment
        before, does not ask for again: its run is moved out of the way.

        Raises:
            UserError: when it differs in what is the same in all trials.
        """
        if not directory.exists():
            return None
        run = RunDirectory.open(directory)
        made = made_of(run)
        other = [key for key in differences(made, config) if key not in _SHARED]
        if not other:
            return run, made
        for key in other:
            if not self._varies(key):
                now = dotted(recorded(config)).get(key)
                raise UserError(
                    f"the sweep has {key} = {short(now)} and its trial {directory.name} was made "
                    f"with {short(made.configuration.get(key))}: write that into the sweep's file "
                    "again, or start a new sweep"
                )
        for number in itertools.count(1):
            aside = directory.with_name(f"{directory.name}.unused-{number}")
            if not aside.exists():
                with writing(directory, "move"):
                    os.rename(directory, aside)
                return None
        raise AssertionError("numbers have no end")

    def _varies(self, key: str) -> bool:
        """Whether trials differ in a setting: it is varied itself, or the kind that it is of."""
        for name in self.varied:
            whole = name.partition("[")[0]
            section = whole.removesuffix("kind" if whole.endswith(".kind") else "at")
            if key == whole or (section != whole and key.startswith(section)):
                return True
        return False

    def _named(self, config: RunConfig, request: Request) -> RunConfig:
        name = f"{config.run.name}-{request.directory.name}"
        update: dict[str, Any] = {"name": name, "directory": request.directory}
        if request.start is not None:
            update["start"] = request.start
        return config.model_copy(update={"run": config.run.model_copy(update=update)})


class Teller(Observer):
    """Tells a trial of each evaluation of its run, once its checkpoint is complete.

    Args:
        steps: of the run.
    """

    waits_for_saved = True  # Tune may stop the trial there, or hand the checkpoint over

    def __init__(self, listener: Listener, steps: int) -> None:
        self._listener, self._steps = listener, steps
        self._trained: dict[str, float] = {}
        self._evaluated: dict[str, float] = {}

    def stepped(self, step: int, metrics: Metrics) -> None:
        self._listener.check()
        self._trained = _flat("train", metrics)

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        self._evaluated |= _flat(split, metrics)

    def saved(self, steps: int) -> None:
        if self._evaluated:
            told, self._evaluated = self._evaluated, {}
            self._listener.tell(steps, {**self._trained, **told}, steps == self._steps)


def _flat(split: str, metrics: Metrics) -> dict[str, float]:
    return flatten(
        split, {f"{n}/{m}": v for n, values in metrics.items() for m, v in values.items()}
    )


def _tell_again(
    run: RunDirectory, prepared: Prepared, request: Request, listener: Listener
) -> None:
    """Report what the run has kept and Tune may not have heard of."""
    kept, steps = start_of(run, None), prepared.schedule.steps
    there = set(run.checkpoints.steps())
    for evaluation in read_evaluations(run):
        known = evaluation.steps in there or not request.hands_over
        # The last one in any case: whoever has heard it was not told that the run is over.
        last = evaluation.steps == steps
        if (request.told < evaluation.steps or last) and evaluation.steps <= kept and known:
            listener.tell(evaluation.steps, evaluation.metrics, last)
