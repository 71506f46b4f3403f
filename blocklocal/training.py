"""From a prepared run to a finished one: engine, records, tracking; and the Python API."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from blocklocal.clusters import cluster
from blocklocal.config import dotted, make_config
from blocklocal.observers import TrackingObserver
from blocklocal.preparation import Prepared, prepare
from learning.data import Dataset
from orchestrator.engine import RayEngine
from orchestrator.events import Engine
from orchestrator.inline import InlineEngine
from orchestrator.placement import check_fit, free_resources
from orchestrator.plan import Plan
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import State, export, model_state
from orchestrator.trainer import Observer, Trainer
from orchestrator.version import code_version
from tuning.tracking import Tracker


@dataclass
class Result:
    """What training leaves behind.

    Attributes:
        directory: the run directory.
        model: the original module with the weights of the last checkpoint.
        metrics: of the last evaluation of each split, `test/block3/accuracy` and the like.
    """

    directory: Path
    model: nn.Module
    plan: Plan
    metrics: dict[str, float]


def _engine(prepared: Prepared) -> Engine:
    config, blocks = prepared.config, prepared.plan.units_of_blocks(prepared.units)
    if config.engine.kind == "sequential":
        return InlineEngine(
            prepared.program,
            blocks,
            prepared.batches,
            evaluation_batch=config.training.evaluation_batch,
            threads=prepared.threads,
        )
    return RayEngine(
        prepared.program,
        prepared.plan,
        blocks,
        prepared.dataset if prepared.in_memory else config.data,
        config.data.augment,
        evaluation_batch=config.training.evaluation_batch,
        threads=prepared.threads,
        window=config.engine.window,
    )


def train(prepared: Prepared, observers: Sequence[Observer] = ()) -> Result:
    """Train a new run from its first step, in a run directory of its own."""
    config = prepared.config
    if config.engine.kind == "ray":
        check_fit(prepared.plan, free_resources())
    stamp = time.strftime("%Y%m%d-%H%M%S")
    path = config.run.directory or Path("runs") / f"{config.run.name}-{stamp}"
    run = RunDirectory.create(path, config=config.model_dump(mode="json"), version=code_version())
    with run.lock():
        run.save_plan(prepared.plan)
        return _train(prepared, run, 0, observers)


def resume(prepared: Prepared, run: RunDirectory, observers: Sequence[Observer] = ()) -> Result:
    """Go on with a run from its last checkpoint, or from the start when it has none."""
    with run.lock():
        last = run.checkpoints.last
        start = last or 0
        run.rewind(start)
        run.update_state(status="running", error=None, steps=start)
        return _train(prepared, run, start, observers)


def _train(
    prepared: Prepared, run: RunDirectory, start: int, observers: Sequence[Observer]
) -> Result:
    config, plan = prepared.config, prepared.plan
    try:
        tracker = Tracker(
            config.tracking,
            run.path.parent,
            dotted(config),
            _tags(prepared),
            run.state.mlflow_run_id,
        )
    except BaseException as error:
        run.update_state(status="failed", error=f"{type(error).__name__}: {error}"[:2000])
        raise
    if tracker.run_id is not None:
        run.update_state(mlflow_run_id=tracker.run_id)
    trainer = Trainer(
        run,
        run.checkpoints,
        plan.hash(),
        config.rule.model_dump(mode="json"),
        f"block{len(plan.blocks)}",
        [*observers, TrackingObserver(tracker)],
    )
    steps = prepared.schedule.steps
    calendar = prepared.schedule.calendar(prepared.batches, config.training.evaluation_batch)
    try:
        if start < steps:
            engine = _engine(prepared)
            try:
                if start:
                    engine.load(run.checkpoints.load(start).state, start)
                trainer.train(engine, range(start, steps), calendar)
            finally:
                engine.close()
        state = run.checkpoints.load(steps).state
        prepared.model.load_state_dict(model_state(state))
        run.update_state(status="finished")
        _log_model(tracker, run, state)
        tracker.end("FINISHED")
    except BaseException as error:
        run.update_state(status="failed", error=f"{type(error).__name__}: {error}"[:2000])
        tracker.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
        raise
    return Result(run.path, prepared.model, plan, _last_evaluations(run))


def _tags(prepared: Prepared) -> dict[str, str]:
    version = code_version()
    return {
        "rule": prepared.config.rule.kind,
        "network": prepared.config.network.kind,
        "plan": prepared.plan.hash(),
        "commit": str(version["git_commit"]),
    }


def _log_model(tracker: Tracker, run: RunDirectory, state: State) -> None:
    if tracker.run_id is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "model.safetensors"
        export(state, file)
        tracker.log_artifact(file, "model")
    for name in ("config.yaml", "plan.json", "version.json"):
        tracker.log_artifact(run.path / name)


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


def fit(
    model: nn.Module,
    data: Dataset,
    *,
    blocks: int | Sequence[str] = 2,
    rule: str | Mapping[str, Any] = "local",
    observers: Sequence[Observer] = (),
    **sections: Mapping[str, Any],
) -> Result:
    """Train an `nn.Sequential` block-locally.

    Args:
        model: maps (B, *input_shape) to (B, classes); its weights are trained in place.
        data: splits in memory, see `blocklocal.arrays_dataset`.
        blocks: how many, or the names of the units that start a new block.
        rule: a rule's kind, or its settings.
        sections: other sections of the configuration: `optimizer={"lr": 0.01}`, `training={...}`.

    Raises:
        UserError: for anything that cannot be run.
    """
    cut = {"count": blocks} if isinstance(blocks, int) else {"at": list(blocks)}
    tree = {"blocks": cut, "rule": {"kind": rule} if isinstance(rule, str) else rule, **sections}
    config = make_config(tree)
    with cluster(config):
        return train(prepare(config, model=model, dataset=data), observers)
