"""A run under way: its state, its observers, its tracking, and the weights that it ends with."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.config import dotted
from blocklocal.ending import afterwards
from blocklocal.gauges import RayMetrics
from blocklocal.observers import TrackingObserver
from blocklocal.preparation import Prepared
from blocklocal.result import Result, last_evaluations
from blocklocal.resuming import recorded
from blocklocal.tracked_files import files_of, report_of
from learning.errors import exits_named
from learning.prediction import Trained
from orchestrator.events import Engine
from orchestrator.fingerprints import Fingerprints
from orchestrator.program import Calendar
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import Stopping
from orchestrator.tensors import State, export, load_model
from orchestrator.trainer import Observer, StopTraining, Trainer
from orchestrator.version import code_version
from tuning.tracker import Tracker
from tuning.tracking import check_place
from tuning.waiting_files import QUEUE


def carry_out(
    prepared: Prepared,
    run: RunDirectory,
    engine: Engine | None,
    start: int,
    observers: Sequence[Observer],
    fingerprints: Fingerprints | None,
    stopping: Stopping,
) -> Result:
    """Train from step `start` to the end, or until somebody stops the run.

    Args:
        engine: None where nothing is left to train.
        fingerprints: for the manifests of checkpoints; None for a run that never had any.
    """
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

    with afterwards(record):
        check_place(config.tracking, run.path.parent)
        tracking = TrackingObserver(tracker(), connected) if config.tracking.enabled else None
        with afterwards(end):
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
                with exits_named(), afterwards(lambda _: gauges.publish() if gauges else None):
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
    metrics = last_evaluations(run)
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
