"""A run is begun or gone on with: what it starts from is checked, and its directory is its own."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.ending import afterwards
from blocklocal.engines import engine_of
from blocklocal.identity import Made, check_checkpoint
from blocklocal.preparation import Prepared
from blocklocal.result import Result
from blocklocal.resuming import check_rows, recorded, start_of
from blocklocal.signals import handled
from blocklocal.starting import beginning
from blocklocal.under_way import carry_out
from learning.errors import UserError
from learning.expected import check_state
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.fingerprints import Fingerprints
from orchestrator.inline import Probe
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import Observer
from orchestrator.version import code_version


def train(
    prepared: Prepared, observers: Sequence[Observer] = (), *, probe: Probe | None = None
) -> Result:
    """Train a new run from its first step, in a run directory of its own.

    Args:
        probe: looks at the sequential engine before each step with evaluations after it.
    """
    config = prepared.config
    path = config.run.directory or _unused_directory(config.run.name)
    first = beginning(prepared)
    engine = engine_of(prepared, probe)  # first: a cluster without room leaves nothing behind
    with handled() as stopping, afterwards(lambda _: engine.close()):
        run = RunDirectory.create(
            path,
            config=recorded(config),
            version=code_version(),
            plan=prepared.plan,
            fingerprints=prepared.fingerprints,
        )
        with afterwards(partial(_note_failure, run)), run.lock():
            if first is not None:
                _adopt(run, prepared, first)
                engine.load(first.state, first.step)
            start = first.step if first else 0
            told = prepared.fingerprints
            return carry_out(prepared, run, engine, start, observers, told, stopping)


def _note_failure(run: RunDirectory, error: BaseException | None) -> None:
    """Write down that a new run has failed before it trained, if it is not written down."""
    if isinstance(error, Exception) and run.state.status == "running":
        run.update_state(status="failed", error=f"{type(error).__name__}: {error}"[:2000])


def _adopt(run: RunDirectory, prepared: Prepared, first: Checkpoint) -> None:
    """Make a checkpoint the run's own: what is lost early is taken back to it."""
    run.checkpoints.save(
        first.step,
        first.state,
        plan_hash=first.plan_hash,
        rule=first.rule,
        metrics=None,
        fingerprints=prepared.fingerprints.of(first.state),
        preprocessing=prepared.dataset.preprocessing,
    )
    run.checkpoints.mark(last=first.step)
    run.update_state(steps=first.step)


def _unused_directory(name: str) -> Path:
    """`runs/<name>-<time>`, with a number behind it when several runs start in one second."""
    first = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = first, 1
    while path.exists():
        number += 1
        path = first.with_name(f"{first.name}-{number}")
    return path


def resume(
    prepared: Prepared,
    run: RunDirectory,
    observers: Sequence[Observer] = (),
    checkpoint: str | int | None = None,
    patience: float = 0.0,
    *,
    made: Made,
) -> Result:
    """Go on with a run from a checkpoint, by default the last; from the start without any.

    Args:
        patience: seconds to wait for another process that is about to leave the run.
        made: with what the run was made, as `prepare` has compared it.

    Raises:
        UserError: when the checkpoint is damaged or not of this run; the run stays as it is.
    """
    with handled() as stopping, run.lock(patience):
        start, steps = start_of(run, checkpoint), prepared.schedule.steps
        found = run.checkpoints.load(start) if start else beginning(prepared)
        if start > steps:
            raise UserError(
                f"{run.path} has finished {start} steps and training.steps = {steps} are fewer: "
                "ask for more, or name an earlier checkpoint"
            )
        if found is not None and start:
            check_checkpoint(made, found)
            check_rows(found, prepared.dataset, run.path)
            blocks = prepared.plan.units_of_blocks(prepared.units)
            whole = made.fingerprints is not None
            check_state(prepared.program, blocks, found.state, start, run.path, whole=whole)
        elif found is not None:
            _adopt(run, prepared, found)
            start = found.step
        state = None if found is None else found.state
        # What cannot be compared is not vouched for: a run of before there were any stays one.
        told = prepared.fingerprints if made.fingerprints is not None else None
        engine = engine_of(prepared) if start < prepared.schedule.steps else None
        with afterwards(lambda _: engine.close() if engine else None):
            if engine and state is not None:
                engine.load(state, start)
            _note_length(run, prepared, told)
            if start and start != run.checkpoints.last:
                run.checkpoints.mark(last=start)  # or a crash before the next one would skip steps
            run.rewind(start)
            run.update_state(status="running", error=None, steps=start)
            return carry_out(prepared, run, engine, start, observers, told, stopping)


def _note_length(run: RunDirectory, prepared: Prepared, told: Fingerprints | None) -> None:
    """Write down with how many steps a run goes on, where that was changed openly."""
    before, training = run.config, recorded(prepared.config)["training"]
    if before.get("training") != training:
        run.change({**before, "training": training}, told)
