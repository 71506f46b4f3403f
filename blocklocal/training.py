"""From a prepared run to a finished one: its directory, its records, its tracking."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.config import dotted
from blocklocal.engines import engine_of
from blocklocal.gauges import RayMetrics
from blocklocal.identity import Made, check_checkpoint
from blocklocal.observers import TrackingObserver
from blocklocal.preparation import Prepared
from blocklocal.resuming import check_rows, recorded, start_of
from blocklocal.signals import handled
from blocklocal.starting import beginning
from blocklocal.tracked_files import files_of, report_of
from learning.data import Preprocessing
from learning.errors import UserError, exits_named
from learning.expected import check_state
from learning.prediction import Trained
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.events import Engine
from orchestrator.fingerprints import Fingerprints
from orchestrator.inline import Probe
from orchestrator.plan import Plan
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import Stopping
from orchestrator.tensors import State, export, load_model
from orchestrator.trainer import Observer, StopTraining, Trainer
from orchestrator.version import code_version
from tuning.tracker import Tracker
from tuning.tracking import check_place
from tuning.waiting_files import QUEUE


@dataclass
class Result:
    """What training leaves behind.

    Attributes:
        directory: the run directory.
        metrics: of the last evaluation of each split, `test/block3/accuracy` and the like.
        checkpoint: how many steps the weights have learnt: all, or those that `StopTraining` names.
        trained: the original module with those weights, and what it was trained to see.
        stopped: whether an observer ended the run early.
    """

    directory: Path
    plan: Plan
    metrics: dict[str, float]
    checkpoint: int
    trained: Trained
    stopped: bool = False

    @property
    def model(self) -> nn.Module:
        """The original module, in evaluation mode; it takes rows that are preprocessed."""
        return self.trained.model

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What turns raw rows into what the model takes."""
        return self.trained.preprocessing

    def predict(self, x: Any) -> np.ndarray:
        """The labels of raw rows, see `Trained.predict`."""
        return self.trained.predict(x)

    def scores(self, x: Any) -> np.ndarray:
        """The scores of raw rows, see `Trained.scores`."""
        return self.trained.scores(x)


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
    with handled() as stopping, _afterwards(lambda _: engine.close()):
        run = RunDirectory.create(
            path,
            config=recorded(config),
            version=code_version(),
            plan=prepared.plan,
            fingerprints=prepared.fingerprints,
        )
        with _afterwards(partial(_note_failure, run)), run.lock():
            if first is not None:
                _adopt(run, prepared, first)
                engine.load(first.state, first.step)
            start = first.step if first else 0
            told = prepared.fingerprints
            return _train(prepared, run, engine, start, observers, told, stopping)


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
        with _afterwards(lambda _: engine.close() if engine else None):
            if engine and state is not None:
                engine.load(state, start)
            _note_length(run, prepared, told)
            if start and start != run.checkpoints.last:
                run.checkpoints.mark(last=start)  # or a crash before the next one would skip steps
            run.rewind(start)
            run.update_state(status="running", error=None, steps=start)
            return _train(prepared, run, engine, start, observers, told, stopping)


def _note_length(run: RunDirectory, prepared: Prepared, told: Fingerprints | None) -> None:
    """Write down with how many steps a run goes on, where that was changed openly."""
    before, training = run.config, recorded(prepared.config)["training"]
    if before.get("training") != training:
        run.change({**before, "training": training}, told)


def _train(
    prepared: Prepared,
    run: RunDirectory,
    engine: Engine | None,
    start: int,
    observers: Sequence[Observer],
    fingerprints: Fingerprints | None,
    stopping: Stopping,
) -> Result:
    config, plan, steps = prepared.config, prepared.plan, prepared.schedule.steps
    stopping.patience, stopping.notice = config.engine.patience, "stopping after this step"

    def record(error: BaseException | None) -> None:
        if isinstance(error, (StopTraining, KeyboardInterrupt)):
            run.update_state(status="stopped")
            stopping.left = _how_to_go_on(prepared, run)
        elif error is not None:
            run.update_state(status="failed", error=f"{type(error).__name__}: {error}"[:2000])
        if error is not None or not config.tracking.enabled:  # or it is sent already
            report_of(run)

    known = run.state.mlflow_run_id

    def tracker() -> Tracker:
        return Tracker(
            config.tracking,
            run.path.parent,
            run.path / QUEUE,
            dotted(recorded(config)),
            _tags(prepared),
            known,
        )

    def connected(run_id: str) -> None:
        run.update_state(mlflow_run_id=run_id)

    def end(error: BaseException | None) -> None:
        interrupted = isinstance(error, KeyboardInterrupt)
        if tracking is not None:
            tracking.end("FINISHED" if error is None else "KILLED" if interrupted else "FAILED")

    with _afterwards(record):
        check_place(config.tracking, run.path.parent)
        tracking = TrackingObserver(tracker(), connected) if config.tracking.enabled else None
        with _afterwards(end):
            gauges = stop = None
            if engine is not None and config.engine.kind == "ray":
                told = tracking.actors if tracking else None
                gauges = RayMetrics(run.path.name, start, config.lanes.min, told)
            trainer = Trainer(
                run,
                run.checkpoints,
                plan.hash(),
                config.rule.model_dump(mode="json"),
                f"block{len(plan.blocks)}",
                [*observers, *(o for o in (tracking, gauges) if o is not None)],
                keep=config.checkpoints.keep,
                fingerprints=fingerprints,
                preprocessing=prepared.dataset.preprocessing,
                stopping=stopping,
            )
            if engine is not None:
                evaluation_batch = config.training.evaluation_batch
                calendar = prepared.schedule.calendar(prepared.batches, evaluation_batch)
                with exits_named(), _afterwards(lambda _: gauges.publish() if gauges else None):
                    stop = _until_stopped(trainer, engine, range(start, steps), calendar)
            if tracking is not None:
                tracking.wait()  # a run that MLflow refuses has not finished
            reached = steps if stop is None else _named(run, stop)
            state = run.checkpoints.load(reached).state if reached else {}
            if state:
                load_model(prepared.model, state)
            prepared.model.eval()
            trained = _trained(prepared, f"checkpoint {reached} of {run.path}")
            run.update_state(status="finished" if stop is None else "stopped")
            if tracking is not None and state:
                _send_files(tracking, run, state, trained)
                if engine is not None or not tracking.has_model:
                    tracking.model(trained.from_raw(), trained.raw_example(), reached)
    metrics = _last_evaluations(run)
    return Result(run.path, plan, metrics, reached, trained, stop is not None)


def _until_stopped(
    trainer: Trainer, engine: Engine, steps: range, calendar: Calendar
) -> StopTraining | None:
    """Train to the end, or until an observer stops the run and names the weights to end with."""
    try:
        trainer.train(engine, steps, calendar)
    except StopTraining as stop:
        if stop.checkpoint is None:
            raise
        return stop
    return None


def _named(run: RunDirectory, stop: StopTraining) -> int:
    """The step of the checkpoint that a stopped run ends with; 0 before the first."""
    assert stop.checkpoint is not None
    if stop.checkpoint == "last" and run.checkpoints.last is None:
        return 0
    return run.checkpoints.resolve(stop.checkpoint)


@contextmanager
def _afterwards(act: Callable[[BaseException | None], None]) -> Iterator[None]:
    """Call `act` at the end with what was raised, or None; its own failure never hides that."""
    try:
        yield
    except BaseException as error:
        try:
            act(error)
        except BaseException as second:
            note = f"and cleaning up failed: {type(second).__name__}: {second}"
            if note not in getattr(error, "__notes__", ()):
                error.add_note(note)
        raise
    act(None)


def _how_to_go_on(prepared: Prepared, run: RunDirectory) -> str:
    steps, path = prepared.schedule.steps, shlex.quote(str(run.path))
    again = f"blocklocal train --resume {path}"
    if prepared.config.run.given:
        again = f"blocklocal.fit(model, data, resume={str(run.path)!r})"
    return f" at step {run.state.steps} of {steps}; go on with {again}"


def _tags(prepared: Prepared) -> dict[str, str]:
    config, version = prepared.config, code_version()
    return {
        "rule": config.rule.kind,
        "network": "given" if "network" in config.run.given else config.network.kind,
        "plan": prepared.plan.hash(),
        "commit": str(version["git_commit"]),
    }


def _trained(prepared: Prepared, source: str) -> Trained:
    return Trained(
        prepared.model,
        prepared.dataset.preprocessing,
        prepared.config.precision,
        prepared.config.training.evaluation_batch,
        source,
    )


def _send_files(
    tracking: TrackingObserver, run: RunDirectory, state: State, trained: Trained
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.safetensors"
        export(state, file, trained.preprocessing)
        tracking.artifact(file, "weights")
    for path in files_of(run):
        tracking.artifact(path)


def _last_evaluations(run: RunDirectory) -> dict[str, float]:
    last: dict[str, float] = {}
    for record in run.read_metrics():
        split = record["split"]
        if split != "train":
            last |= {
                f"{split}/{name}": value
                for name, value in record.items()
                if name not in ("step", "split")
            }
    return last
