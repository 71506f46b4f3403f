"""What a run says about its making, and whether a later call may go on with it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from torch import nn

from blocklocal.config import RunConfig
from learning.errors import UserError
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.checkpoints import Checkpoints
from orchestrator.plan import Plan
from orchestrator.rundir import RunDirectory
from orchestrator.storage import LocalStorage, absolute
from orchestrator.tensors import State, model_state


def recorded(config: RunConfig) -> dict[str, Any]:
    """The settings that a run writes down: not the defaults of what was given in Python instead."""
    tree = config.model_dump(mode="json")
    if "network" in config.run.given:
        del tree["network"]
    if "data" in config.run.given:
        tree["data"] = {"augment": tree["data"]["augment"]}
    return tree


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Fix where data and checkpoints lie: other processes, and a later resume, start elsewhere."""
    paths = {
        name: Path(os.path.abspath(value.expanduser()))
        for name, value in config.data
        if isinstance(value, Path)
    }
    storage = absolute(config.checkpoints.storage)
    start = config.run.start and Path(os.path.abspath(config.run.start.expanduser()))
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"start": start}),
            "data": config.data.model_copy(update=paths),
            "checkpoints": config.checkpoints.model_copy(update={"storage": storage}),
        }
    )


def check_resumable(old: RunConfig, new: RunConfig) -> None:
    """Only what does not change the mathematics may change on resuming.

    Raises:
        UserError: naming the first section that differs.
    """
    threads = [c.engine.resources.threads for c in (old, new)]
    if threads[0] != threads[1]:
        raise UserError(
            f"this run was made with engine.resources.threads = {threads[0]} and cannot go on with "
            f"{threads[1]}, which rounds differently: resume it unchanged or start anew"
        )
    old, new = with_absolute_paths(old), with_absolute_paths(new)
    if old.checkpoints.storage != new.checkpoints.storage:
        raise UserError(
            f"this run was made with checkpoints.storage = {old.checkpoints.storage} and its "
            f"checkpoints are not in {new.checkpoints.storage}: resume it unchanged"
        )
    syncs = [c.lanes.model_dump(mode="json")["sync"] for c in (old, new)]
    if syncs[0] != syncs[1]:
        raise UserError(
            f"this run was made with lanes.sync = {syncs[0]} and cannot go on with {syncs[1]}: "
            "resume it unchanged or start anew"
        )
    free = {"engine", "lanes", "tracking", "run", "checkpoints"}
    for section in RunConfig.model_fields:
        before, after = getattr(old, section), getattr(new, section)
        if section not in free and before != after:
            raise UserError(
                f"this run was made with {section} = {before.model_dump(mode='json')} and cannot "
                f"go on with {after.model_dump(mode='json')}: resume it unchanged or start anew"
            )


def check_given(run: RunDirectory, old: RunConfig, *, in_python: bool) -> None:
    """A run goes on where it was made: there are its data and its network.

    Raises:
        UserError: naming the other place.
    """
    if old.run.given and not in_python:
        raise UserError(
            f"{run.path} was trained in Python with {' and '.join(old.run.given)} in memory: "
            "go on there with blocklocal.fit(model, data, resume=...)"
        )
    if in_python and not old.run.given:
        raise UserError(
            f"{run.path} was trained with data and network of its settings: go on with "
            "blocklocal train --resume"
        )


def start_of(run: RunDirectory, checkpoint: str | int | None) -> int:
    """The step at which a run goes on: of a checkpoint, by default the last; 0 without any.

    Where the last is damaged it is the one before, and a warning on standard error says so.

    Raises:
        UserError: when there is no such checkpoint, or none that is whole.
    """
    if checkpoint is not None:
        return run.checkpoints.resolve(checkpoint)
    last = run.checkpoints.last
    newest, skipped = run.checkpoints.newest_valid(last)
    if last is not None and last not in run.checkpoints.steps():
        where = run.checkpoints.storage.at()
        skipped.insert(0, f"checkpoint {last}, the last, is gone from {where}")
    if newest is None and skipped:
        raise UserError(
            f"no checkpoint of {run.path} is whole ({skipped[0]}): restore one from a copy or "
            "start a new run"
        )
    for sentence in skipped:
        print(f"blocklocal: warning: {sentence}", file=sys.stderr)
    return 0 if newest is None else newest.step


def beginning(config: RunConfig, plan: Plan, model: nn.Module, steps: int) -> Checkpoint | None:
    """The checkpoint that a new run begins with instead of step 0, if it names one.

    Args:
        steps: of the run.

    Raises:
        UserError: when it cannot be read, or is of other blocks, another rule or the end.
    """
    place = config.run.start
    if place is None:
        return None
    found, skipped = Checkpoints(LocalStorage(place)).newest_valid()
    if found is None:
        why = f" ({skipped[0]})" if skipped else ""
        raise UserError(
            f"run.start = {place} holds no checkpoint{why}: name the checkpoints/ of a run"
        )
    there, here = found.rule.get("kind"), config.rule.kind
    if found.plan_hash != plan.hash() or there != here:
        what = f"plan {found.plan_hash}" if there == here else f"rule.kind = {there}"
        raise UserError(
            f"run.start = {place} is of {what} and this run has "
            f"{f'plan {plan.hash()}' if there == here else here}: cut and train as that run did"
        )
    check_same_network(place, model, found.state)
    if found.step >= steps:
        raise UserError(
            f"run.start = {place} is of step {found.step} and this run has {steps}: raise "
            "training.steps"
        )
    return found


def check_same_network(run: RunDirectory | Path, model: nn.Module, state: State) -> None:
    """Check that the weights of a checkpoint fit a network.

    Args:
        run: where it is from.

    Raises:
        UserError: naming the first tensor that does not.
    """
    where = run if isinstance(run, Path) else run.path
    theirs = {name: tuple(t.shape) for name, t in model_state(state).items()}
    mine = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name in sorted({*theirs, *mine}):
        if theirs.get(name) != mine.get(name):
            raise UserError(
                f"{name} has shape {mine.get(name)} in this network and {theirs.get(name)} in "
                f"{where}: give the network of that run"
            )
