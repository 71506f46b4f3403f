"""From a configuration to a finished run: data, network, plan, engine, records."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from torch import nn

from blocklocal.config import RunConfig, dotted, make_config
from blocklocal.observers import TrackingObserver
from learning.block import LearnerSettings
from learning.build import Program, check_program
from learning.data import Batches, Dataset, load_dataset
from learning.errors import UserError
from learning.networks import build_network
from learning.units import Unit, units_of
from orchestrator.engine import RayEngine
from orchestrator.events import Engine
from orchestrator.inline import InlineEngine
from orchestrator.placement import check_fit, even_cpus, free_resources
from orchestrator.plan import Plan, make_plan
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import State, export, model_state
from orchestrator.trainer import Observer, Schedule, Trainer
from orchestrator.version import code_version
from tuning.tracking import Tracker


@dataclass
class Prepared:
    """A run that could start: everything is checked and nothing is written."""

    config: RunConfig
    dataset: Dataset
    model: nn.Module
    units: list[Unit]
    plan: Plan
    program: Program
    batches: Batches
    schedule: Schedule
    threads: int
    in_memory: bool


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


def prepare(
    config: RunConfig,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    plan: Plan | None = None,
) -> Prepared:
    """Check a configuration against its data and network.

    Args:
        model: the user's own network instead of `config.network`.
        dataset: data in memory instead of `config.data`.
        plan: of a run to be resumed; otherwise one is made.

    Raises:
        UserError: for anything that cannot be run.
    """
    in_memory = dataset is not None
    dataset = load_dataset(config.data) if dataset is None else dataset
    training = config.training
    batches = Batches(
        dataset,
        seed=training.seed,
        batch=training.batch,
        shards=training.shards,
        augment=config.data.augment,
    )
    if model is None:
        model = build_network(config.network, dataset.input_shape, dataset.classes, training.seed)
    if config.precision.compute == "float64":
        model = model.double()
    units = units_of(model)
    if plan is None:
        sample = torch.zeros(
            training.batch, *dataset.input_shape, dtype=next(iter(model.parameters())).dtype
        )
        plan = _plan(config, units, sample)
    else:  # what actors reserve may change on resuming
        cpus, gpus = _cpus(config, len(plan.blocks)), config.engine.resources.gpus
        reserved = (b.model_copy(update={"cpus": cpus, "gpus": gpus}) for b in plan.blocks)
        plan = Plan(blocks=tuple(reserved))
    if plan.blocks[-1].output_shape != (dataset.classes,):
        raise UserError(
            f"the network gives an output of shape {plan.blocks[-1].output_shape} for "
            f"{dataset.classes} classes: end it with {dataset.classes} scores or set data.classes"
        )
    steps = training.steps or max(1, round(training.epochs * batches.steps_per_epoch))
    learner_settings = LearnerSettings(
        optimizer=config.optimizer,
        schedule=config.schedule,
        precision=config.precision,
        seed=training.seed,
        batch=training.batch,
        shards=training.shards,
        steps=steps,
    )
    shapes = tuple(b.output_shape for b in plan.blocks)
    program = Program(config.rule, learner_settings, shapes, dataset.classes)
    check_program(program)
    every = training.evaluate_every or batches.steps_per_epoch
    threads = config.engine.resources.threads or max(1, _cores() // len(plan.blocks))
    return Prepared(
        _with_threads(config, threads),
        dataset,
        model,
        units,
        plan,
        program,
        batches,
        Schedule(steps, every),
        threads,
        in_memory,
    )


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _with_threads(config: RunConfig, threads: int) -> RunConfig:
    """Fix the number of threads: results depend on it, and a resume may see another machine."""
    resources = config.engine.resources.model_copy(update={"threads": threads})
    engine = config.engine.model_copy(update={"resources": resources})
    return config.model_copy(update={"engine": engine})


def _cpus(config: RunConfig, blocks: int) -> float:
    if config.engine.resources.cpus is not None:
        return config.engine.resources.cpus
    nodes = free_resources() if ray.is_initialized() else [{"CPU": float(_cores())}]
    return even_cpus(sum(n.get("CPU", 0.0) for n in nodes), blocks)


def _plan(config: RunConfig, units: Sequence[Unit], sample: torch.Tensor) -> Plan:
    cpus, gpus = _cpus(config, config.blocks.count), config.engine.resources.gpus
    return make_plan(units, config.blocks, sample, cpus=cpus, gpus=gpus)


@contextmanager
def cluster(config: RunConfig) -> Iterator[None]:
    """Connect to the configured Ray cluster, or start a local one, unless connected already."""
    if config.engine.kind != "ray" or ray.is_initialized():
        yield
        return
    address = config.engine.address
    try:
        if address is None:
            ray.init(
                address="local",
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
                _node_ip_address="127.0.0.1",  # a laptop's run is nobody else's business
            )
        else:
            _knock(address)
            ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (OSError, RuntimeError, ValueError, OverflowError) as error:
        raise UserError(
            f"cannot reach a Ray cluster at engine.address = {address!r} ({error}): start one or "
            "leave engine.address empty for a local one"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail within seconds where nobody answers: Ray would try for minutes and end the process."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


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
