"""Runs that begin with a checkpoint of another: what they share with it, and what they may not."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blocklocal.identity import STRUCTURE, differing_data, short, with_defaults
from blocklocal.preparation import Prepared
from learning.errors import UserError
from learning.expected import check_state
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.checkpoints import Checkpoints
from orchestrator.fingerprints import Fingerprints, differing
from orchestrator.storage import LocalStorage

_WAITING = ("sent.", "pending.", "stashed.", "replay.")
"""Parts of a state that a later step takes: they are as its settings want them."""


def beginning(prepared: Prepared) -> Checkpoint | None:
    """The checkpoint that a new run begins with instead of step 0, if it names one.

    Raises:
        UserError: when it cannot be read, is of another cut, network, rule or optimizer, of data
            that have changed since, or of the end.
    """
    config, plan, steps = prepared.config, prepared.plan, prepared.schedule.steps
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
    if found.fingerprints is None:
        print(
            f"blocklocal: warning: run.start = {place} was made by a version that kept no "
            "fingerprints: whether its data are those of this run cannot be checked",
            file=sys.stderr,
        )
    else:
        _check_made(prepared, place, found, found.fingerprints)
    blocks = plan.units_of_blocks(prepared.units)
    whole = found.fingerprints is not None
    check_state(prepared.program, blocks, found.state, found.step, place, whole=whole)
    if found.step >= steps:
        raise UserError(
            f"run.start = {place} is of step {found.step} and this run has {steps}: raise "
            "training.steps"
        )
    return found


def _check_made(prepared: Prepared, place: Path, found: Checkpoint, told: Fingerprints) -> None:
    """Compare what a checkpoint tells of its making with this run.

    Raises:
        UserError: naming the first that may not differ.
    """
    theirs, ours = with_defaults(told.configuration), prepared.fingerprints.configuration
    other = differing(theirs, ours)
    waiting = any(name.startswith(_WAITING) for state in found.state.values() for name in state)
    for key in other:
        if key in STRUCTURE or (waiting and _shapes_messages(key, theirs, ours)):
            raise UserError(
                f"run.start = {place} was made with {key} = {short(theirs.get(key))} and this run "
                f"has {short(ours.get(key))}, which its state does not fit: set it as that run did"
            )
    parts = ", ".join(differing_data(told, prepared.fingerprints.data))
    if not parts:
        return
    if any(key.startswith("data.") for key in other) or prepared.in_memory:
        print(
            f"blocklocal: warning: run.start = {place} was trained on other data than this run "
            f"({parts})",
            file=sys.stderr,
        )
        return
    raise UserError(
        f"run.start = {place} was trained on other data ({parts}), though the settings of data are "
        "the same: bring those back, or set data to where others lie"
    )


def _shapes_messages(key: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a setting says what messages there are: of a rule all but its real coefficients."""
    if key.startswith("rule."):
        return not all(isinstance(values.get(key), float) for values in (theirs, ours))
    return key.startswith(("codec.", "training.batch", "training.shards", "precision."))
