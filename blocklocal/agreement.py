"""Checks of a run whose lanes agree only every so many steps: what else must happen then."""

from __future__ import annotations

from blocklocal.config import RunConfig
from learning.errors import UserError


def check_agreement(config: RunConfig, steps: int, evaluate_every: int) -> None:
    """Check that nothing is to be evaluated or saved where lanes differ.

    Args:
        config: of the run.
        steps: of the run.
        evaluate_every: steps between evaluations, each of which is a checkpoint.

    Raises:
        UserError: naming the setting that does not fit `lanes.sync.every`.
    """
    outer, training = config.lanes.outer, config.training
    if outer is None:
        return
    every, asked = outer.every, f"lanes.sync.every = {outer.every}"
    if config.engine.kind == "sequential" and config.lanes.max > 1:
        raise UserError(
            f"engine.kind = sequential has one lane, and with {asked} the result is not that of "
            f"lanes.max = {config.lanes.max}: set lanes.max = 1 or engine.kind = ray"
        )
    between = config.checkpoints.every
    if steps % every:
        known = "training.steps" if training.steps else "training.epochs makes it"
        what = f"the run ends after {steps} ({known})"
        fix = f"set training.steps = {_near(steps, every)}"
    elif evaluate_every < steps and evaluate_every % every:
        known = "training.evaluate_every" if training.evaluate_every else "an epoch"
        what = f"a checkpoint comes with the evaluation every {evaluate_every} ({known})"
        fix = f"set training.evaluate_every = {_near(evaluate_every, every)}"
    elif between is not None and between < steps and between % every:
        what = f"a checkpoint comes every {between} (checkpoints.every)"
        fix = f"set checkpoints.every = {_near(between, every)}"
    else:
        return
    raise UserError(
        f"{asked}: lanes are the same, and can be saved, only after each {every} steps, but {what}:"
        f" {fix} or another multiple"
    )


def _near(steps: int, every: int) -> int:
    return max(1, round(steps / every)) * every
