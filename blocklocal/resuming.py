"""What a run writes down of its settings, and the checkpoint at which it goes on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from blocklocal.config import RunConfig
from learning.data import Dataset
from learning.errors import UserError
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.rundir import RunDirectory
from orchestrator.storage import absolute


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


def check_rows(found: Checkpoint, dataset: Dataset, where: object) -> None:
    """Check that a checkpoint was trained on the rows that its data give now.

    Args:
        where: it is from.

    Raises:
        UserError: for one that keeps no preprocessing, unless its rows are the same nonetheless.
    """
    images = len(dataset.input_shape) == 3
    if found.preprocessing is None and not dataset.tokens:
        if images and len(dataset.validation) == 0:
            return
        what = "held out other rows" if images else "normalised flat rows by one mean of all"
        raise UserError(
            f"checkpoint {found.step} of {where} was written by a version that {what}: go on with "
            "that version, which version.json names, or start a new run"
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
