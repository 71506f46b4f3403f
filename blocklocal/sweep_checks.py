"""Everything that is checked of a sweep before its first trial; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from blocklocal.config import RunConfig
from blocklocal.preparation import prepare
from blocklocal.sweep_file import SweepFile
from blocklocal.sweep_runs import TrialRuns
from learning.build import Program
from learning.errors import UserError
from orchestrator.placement import check_room, free_resources
from tuning.settings import block_of, check_metric
from tuning.space import Values

BRANCHES = ("blocks.count", "blocks.at")
"""Besides kinds: settings of which all combinations are prepared, as a run would be."""
MOST_PREPARED = 32


@dataclass(frozen=True)
class Length:
    """How long a trial is.

    Attributes:
        steps: of a whole run.
        every: steps between evaluations.
    """

    steps: int
    every: int


def check_values(file: SweepFile) -> list[tuple[Values, RunConfig]]:
    """Check the extreme values of the space, and that all that may be asked of a trial is there.

    Returns:
        Points of the space, with their configurations.

    Raises:
        UserError: naming the first that no run can have.
    """
    checked = []
    for values in file.space.corners(BRANCHES):
        try:
            config = file.config(values)
        except UserError as error:
            raise UserError(_of_space(error, values)) from error
        _check_trial(config)
        checked.append((values, config))
    check_metric(file.settings.metric, min(config.blocks.count for _, config in checked))
    return checked


def _of_space(error: UserError, values: Values) -> str:
    """Say where in the space an error is, and what would leave it out."""
    text = str(error)
    found = re.match(r"(\w+)\.kind = (\S+) has no setting (\S+?):", text)
    if found:
        section, kind, name = found.groups()
        inside = [k for k in values if f"{k}.".startswith(f"{section}.{name}.")]
        if inside:
            return (
                f"space varies {inside[0]}, which {section}.kind = {kind} does not have: add "
                f"when: {{{section}.kind: ...}} to it"
            )
    return text if any(key in text for key in values) else f"{text} (at {_short(values)})"


def _short(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items())


def _check_trial(config: RunConfig) -> None:
    if config.lanes.max > config.lanes.min:
        raise UserError(
            f"lanes.max = {config.lanes.max} in a sweep is more than lanes.min = "
            f"{config.lanes.min}, and what a trial has reserved does not grow: make them equal"
        )
    if config.engine.rebalance is not None:
        raise UserError(
            f"engine.rebalance = {config.engine.rebalance:g} in a sweep: blocks cannot move out of "
            "what a trial has reserved, leave it out"
        )
    if config.data.validation == 0:
        raise UserError(
            "data.validation = 0 leaves no rows to choose a trial by: set it above 0, such as 0.1"
        )


def check_points(file: SweepFile, points: Iterable[Values]) -> None:
    """Check the configuration of every trial that is known beforehand.

    Raises:
        UserError: naming the first that no run can have.
    """
    for values in points:
        try:
            file.config(values)
        except UserError as error:
            raise UserError(_of_space(error, values)) from error


def check_prepared(checked: Iterable[tuple[Values, RunConfig]], metric: str) -> Length:
    """Prepare a run for each combination of kinds and cuts: data, networks, rules.

    Args:
        metric: that all of them must report.

    Returns:
        The length of the longest.

    Raises:
        UserError: naming the values that no run can have.
    """
    steps = every = 0
    for values, config in _one_of_each(checked):
        # Any cut shows whether the rule can work on it, and this one takes no time to find.
        blocks = config.blocks.model_copy(update={"balance": "parameters"})
        try:
            prepared = prepare(config.model_copy(update={"blocks": blocks}))
        except UserError as error:
            raise UserError(f"{error} (at {_short(values)})") from error
        block = block_of(metric)
        if block is not None and not _has_loss(prepared.program, block):
            raise UserError(
                f"sweep.metric = {metric} is of block {block}, which has no loss of its own under "
                f"rule.kind = {config.rule.kind}: use validation/accuracy, that of the last block"
            )
        schedule = prepared.schedule
        if schedule.steps > steps:
            steps, every = schedule.steps, schedule.evaluate_every
    return Length(steps, every)


def _has_loss(program: Program, block: int) -> bool:
    return block == program.blocks or program.assessed(block)


def _one_of_each(
    checked: Iterable[tuple[Values, RunConfig]],
) -> Iterator[tuple[Values, RunConfig]]:
    seen: list[tuple[Any, ...]] = []
    for values, config in checked:
        kinds = tuple(
            getattr(getattr(config, name), "kind", None) for name in RunConfig.model_fields
        )
        mark = (*kinds, config.blocks.count, config.blocks.at)
        if mark not in seen and len(seen) < MOST_PREPARED:
            seen.append(mark)
            yield values, config


@dataclass(frozen=True)
class _Asked:
    index: int
    cpus: float
    gpus: float


def check_bundles(runs: TrialRuns, all_values: Iterable[Values]) -> None:
    """Check that each trial fits the free nodes of the cluster that is connected.

    Raises:
        UserError: naming what is asked, what there is, and the fix.
    """
    nodes, seen = free_resources(), set[tuple[tuple[float, float], ...]]()
    for values in all_values:
        bundles = [b for b in runs.bundles(values) if "CPU" in b]
        asked = tuple((b.get("CPU", 0.0), b.get("GPU", 0.0)) for b in bundles)
        if asked not in seen:
            seen.add(asked)
            check_room([_Asked(i, *one) for i, one in enumerate(asked, start=1)], nodes)
