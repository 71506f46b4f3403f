"""What a run says about its making, and whether a later call may go on with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from blocklocal.config import RunConfig
from learning.errors import UserError
from orchestrator.rundir import RunDirectory
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
    """Fix where the data lie: other processes, and a later resume, have other directories."""
    paths = {
        name: Path(os.path.abspath(value.expanduser()))
        for name, value in config.data
        if isinstance(value, Path)
    }
    return config.model_copy(update={"data": config.data.model_copy(update=paths)})


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
    free = {"engine", "tracking", "run"}
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
    """The step at which a run goes on: of a checkpoint, by default the last; 0 without any."""
    return (
        (run.checkpoints.last or 0) if checkpoint is None else run.checkpoints.resolve(checkpoint)
    )


def check_same_network(run: RunDirectory, model: nn.Module, state: State) -> None:
    """Check that the weights of a checkpoint fit a network.

    Raises:
        UserError: naming the first tensor that does not.
    """
    theirs = {name: tuple(t.shape) for name, t in model_state(state).items()}
    mine = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    for name in sorted({*theirs, *mine}):
        if theirs.get(name) != mine.get(name):
            raise UserError(
                f"{name} has shape {mine.get(name)} in this network and {theirs.get(name)} in "
                f"{run.path}: give the network of that run"
            )
