"""Whether a later call may go on with what a run has left: one comparison for all of them.

To resume, to begin with another run's checkpoint, to evaluate, to export and the trials of a sweep
compare here, before anything is built: data, plan, modules and settings with what the run's records
tell (`Fingerprints`), and those with what the manifest of the checkpoint tells.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from blocklocal.config import RunConfig, dotted, make_config, overlay
from blocklocal.resuming import recorded, with_absolute_paths
from learning.credit import Reconcile
from learning.errors import UserError, one_line
from learning.fingerprints import module_fingerprint, preprocessing_fingerprint
from learning.rules import BLL
from learning.settings import ConstantSchedule
from learning.units import Unit
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.fingerprints import Fingerprints, differing
from orchestrator.plan import Plan
from orchestrator.rundir import RunDirectory

OPEN = {
    "run": "where a run is kept and what it is called",
    "engine": "what computes a step, and on what",
    "lanes": "how many share a step",
    "tracking": "who is told",
    "checkpoints": "how often, and how many stay",
}
"""Sections that change no bit of a result, so that they may change when a run goes on."""
CLOSED_WITHIN = {
    "engine.resources.threads": "rounds differently",
    "lanes.sync": "is another rule of learning",
}
"""Settings of those sections that do change bits."""
PLACES = ("checkpoints.storage", "run.start")
"""What is read from `config.yaml` alone: another value would be ignored."""
LENGTH = ("training.steps", "training.epochs")
"""May be changed openly, where no step depends on how many follow."""
STRUCTURE = ("rule.kind", "optimizer.kind")
"""What a run must share with another whose checkpoint it begins with, besides cut and tensors."""
STARTABLE = ("optimizer.", "schedule.", "training.", "engine.resources.threads", "data.augment.")
"""What a run that begins with another's checkpoint may have of its own, whatever the rule."""
SHORT = 60


@dataclass(frozen=True)
class Made:
    """What a run was made with.

    Attributes:
        path: its directory.
        configuration: the settings that decide its bits.
        fingerprints: None for a run that was made before there were any.
    """

    path: Path
    configuration: Mapping[str, Any]
    fingerprints: Fingerprints | None


def deciding(config: RunConfig) -> dict[str, Any]:
    """The settings that decide the bits of a run, by dotted key."""
    return {key: value for key, value in dotted(recorded(config)).items() if not _is_open(key)}


def _is_open(key: str) -> bool:
    within = any(key == name or key.startswith(f"{name}.") for name in CLOSED_WITHIN)
    return key.partition(".")[0] in OPEN and not within


def fingerprints_of(
    config: RunConfig, data: Mapping[str, str], plan: Plan, units: Sequence[Unit]
) -> Fingerprints:
    """Those of a run that is about to begin, `data` as `data_fingerprint` tells them."""
    return Fingerprints(
        data=dict(data),
        plan=plan.hash(),
        units={unit.name: module_fingerprint(unit.module) for unit in units},
        configuration=deciding(config),
    )


def made_of(run: RunDirectory, *, warn: bool = True) -> Made:
    """What a run was made with, as its records tell or else the manifest of its last checkpoint.

    Args:
        warn: on standard error, of a run of which nothing is told.

    Raises:
        UserError: for records that are damaged, or a plan that is another one than they tell.
    """
    told = run.fingerprints
    if told is None and (steps := run.checkpoints.steps()):
        told = run.checkpoints.manifest(steps[-1]).fingerprints
    if told is None and warn:
        print(
            f"blocklocal: warning: {run.path} was made by a version that kept no fingerprints: "
            "whether its data, its network and its config.yaml are still those that it was trained "
            "with cannot be checked",
            file=sys.stderr,
        )
    if told is None:
        return Made(run.path, deciding(make_config(run.config)), None)
    if (found := run.plan.hash()) != told.plan:
        raise UserError(
            f"{run.path / 'plan.json'} is plan {found} and the run was made with {told.plan}: "
            "restore it from a copy"
        )
    return Made(run.path, told.configuration, told)


def check_settings(
    made: Made, run: RunDirectory, config: RunConfig, said: Collection[str] = ()
) -> None:
    """Compare the settings with which a run is to be gone on with, or read.

    Args:
        config: those of `config.yaml` with the settings over them that were said.
        said: dotted keys of those.

    Raises:
        UserError: naming the first that may not differ, and what works.
    """
    before, now = with_defaults(made.configuration), deciding(config)
    for key in differences(made, config):
        _refuse_setting(made, config, key, before.get(key), now.get(key), said)
    ours, theirs = (
        dotted(recorded(with_absolute_paths(c))) for c in (make_config(run.config), config)
    )
    for key in PLACES:
        if ours.get(key) != theirs.get(key):
            raise UserError(
                f"{key} = {short(theirs.get(key))} would be ignored, {made.path} has "
                f"{short(ours.get(key))}: leave it out"
            )


def differences(made: Made, config: RunConfig) -> list[str]:
    """The settings that decide bits and differ from those that a run was made with, kinds first."""
    other = differing(with_defaults(made.configuration), deciding(with_absolute_paths(config)))
    if made.fingerprints is not None:  # then the data themselves are compared
        other = [key for key in other if key not in path_keys(config)]
    return sorted(other, key=lambda key: not key.endswith(".kind"))


def _refuse_setting(
    made: Made, config: RunConfig, key: str, before: Any, now: Any, said: Collection[str]
) -> None:
    """Raise the sentence about a setting that differs, unless it may."""
    run, python = made.path, bool(config.run.given)
    if not any(key == word or key.startswith(f"{word}.") for word in said):
        raise UserError(
            f"{run / 'config.yaml'} has {key} = {short(now)} and the run was made with "
            f"{short(before)}: write that there again"
            + ("" if python else f", or say {key}={word(before)} behind --resume {run}")
        )
    what = f"{run} was made with {key} = {short(before)} and cannot go on with {short(now)}"
    if key == "training.epochs" and config.training.steps is not None:
        steps = config.training.steps
        raise UserError(f"training.steps = {steps} wins over {key}: set training.steps instead")
    if key in LENGTH:
        why = fixed_length(config)
        if why is None:
            return
        what += f", because {why}"
    fix = "leave it out, or start a new run"
    begins = key.startswith(STARTABLE) and key not in STRUCTURE
    if begins and not (key == "optimizer.momentum" and not (before and now)):
        fix += f" from its last checkpoint: {_start(made, key, now, python)}"
    raise UserError(f"{what}: {fix}")


def _start(made: Made, key: str, value: Any, python: bool) -> str:
    place = made.path / "checkpoints"
    if python:
        section, _, name = key.partition(".")
        return f"fit(model, data, run={{'start': '{place}'}}, {section}={{'{name}': {value!r}}})"
    more = "" if key in LENGTH else " training.steps=..."
    return (
        f"blocklocal train {made.path / 'config.yaml'} run.directory=null run.start={place} "
        f"{key}={word(value)}{more}"
    )


def fixed_length(config: RunConfig) -> str | None:
    """Why the first steps of a run depend on how many there are in all; None where they do not."""
    rule = config.rule
    if not isinstance(config.schedule, ConstantSchedule):
        return f"schedule.kind = {config.schedule.kind} counts in shares of all steps"
    if isinstance(rule, BLL) and rule.bootstrap.share:
        return "rule.bootstrap.until is a share of all steps"
    if isinstance(rule.credit, Reconcile) and rule.credit.warmup:
        return "rule.warmup is a share of all steps"
    return None


def check_data(made: Made, data: Mapping[str, str]) -> None:
    """Compare data with those that a run was made with.

    Raises:
        UserError: naming the first part that is another.
    """
    told = made.fingerprints
    if told is not None and (other := differing_data(told, data)):
        raise UserError(
            f"{made.path} was trained with other data ({', '.join(other)}): bring those back, or "
            "start a new run"
        )


def differing_data(told: Fingerprints, data: Mapping[str, str]) -> list[str]:
    """The parts of data that differ; of others nothing was told."""
    return [name for name, value in told.data.items() if data.get(name) != value]


def check_units(made: Made, units: Sequence[Unit]) -> None:
    """Compare the modules of a network with those that a run was made with.

    Raises:
        UserError: naming the first unit that is another.
    """
    told = made.fingerprints
    if told is None:
        return
    here = {unit.name: module_fingerprint(unit.module) for unit in units}
    for name in differing(told.units, here):
        if name in told.units and name in here:  # what there is more or less the plan tells
            raise UserError(
                f"unit {name} is {here[name]} in this network and {told.units[name]} in "
                f"{made.path}: give the network of that run"
            )


def check_checkpoint(made: Made, checkpoint: Checkpoint) -> None:
    """Compare what a checkpoint of a run says of its making with what the run says.

    Raises:
        UserError: naming what differs.
    """
    ours, theirs, what = made.fingerprints, checkpoint.fingerprints, f"checkpoint {checkpoint.step}"
    fix = f"restore it from a copy, or choose another one than {what}"
    if ours is None:
        return
    if theirs is None:
        raise UserError(
            f"{what} of {made.path} has no fingerprints, and its run has: it was written by "
            f"something else; {fix}"
        )
    if theirs.plan != ours.plan or checkpoint.plan_hash != ours.plan:
        raise UserError(f"{what} is of plan {theirs.plan} and {made.path} of {ours.plan}: {fix}")
    seen = checkpoint.preprocessing and preprocessing_fingerprint(checkpoint.preprocessing)
    for name, a, b in (
        ("the data", theirs.data, ours.data),
        ("the preprocessing", seen or {}, {n: ours.data[n] for n in seen or {} if n in ours.data}),
        ("the network", theirs.units, ours.units),
        ("the settings", theirs.configuration, ours.configuration),
    ):
        other = [key for key in differing(a, b) if key not in LENGTH]
        if other:
            raise UserError(
                f"{what} and {made.path} differ in {name}, {other[0]} (there "
                f"{short(a.get(other[0]))}, in the run {short(b.get(other[0]))}): {fix}"
            )


def with_defaults(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that came after a run was made have their defaults in it."""
    tree: dict[str, Any] = {}
    for key, value in configuration.items():
        overlay(tree, key.split("."), value)
    given = [f"{name}." for name in ("data", "network") if f"{name}.kind" not in configuration]
    added = {
        key: value
        for key, value in deciding(make_config(tree)).items()
        if key.startswith("data.augment.") or not key.startswith(tuple(given))
    }
    return {**added, **configuration}


def path_keys(config: RunConfig) -> set[str]:
    """Settings of data that say where they lie."""
    fields = type(config.data).model_fields
    return {f"data.{name}" for name, field in fields.items() if _holds_path(field.annotation)}


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_holds_path, get_args(annotation)))


def short(value: Any) -> str:
    """A value in a sentence."""
    return one_line(word(value), SHORT)


def word(value: Any) -> str:
    """A value as it stands in a word of the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(word(v) for v in value)}]"
    return str(value)
