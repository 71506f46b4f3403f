"""From a configuration to a run that could start: everything is checked, nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import ray
import torch
from torch import nn

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.agreement import check_agreement
from blocklocal.balancing import RuleCosts
from blocklocal.config import RunConfig
from blocklocal.identity import Made, check_data, check_units, fingerprints_of
from blocklocal.precision import cores, threads_of, with_compute
from blocklocal.programs import (
    check_direction,
    first_type,
    numerics_of,
    program_for,
    sample_rows,
    types_of,
)
from blocklocal.resuming import with_absolute_paths
from learning.build import Program
from learning.checks import check_lanes, check_local_recovery, check_program
from learning.data import Batches, Dataset, load_dataset
from learning.errors import UserError, exits_named
from learning.fingerprints import data_fingerprint
from learning.module_checks import check_modules
from learning.networks import build_network
from learning.networks.custom import CustomSettings
from learning.numerics import widen
from learning.rules import Backprop
from learning.surroundings import check_surroundings
from learning.units import Unit, units_of
from orchestrator.fingerprints import Fingerprints
from orchestrator.placement import even_cpus, free_resources
from orchestrator.plan import Plan
from orchestrator.planning import make_plan
from orchestrator.rehearsal import rehearse
from orchestrator.schedule import Schedule
from orchestrator.settings import SourcePlace


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
    source: SourcePlace
    in_memory: bool
    fingerprints: Fingerprints


@exits_named()
def prepare(
    config: RunConfig,
    *,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    plan: Plan | None = None,
    made: Made | None = None,
    profile: bool = False,
    read: Dataset | None = None,
) -> Prepared:
    """Check a configuration against its data and network.

    Args:
        model: the user's own network instead of `config.network`.
        dataset: data in memory instead of `config.data`.
        plan: of a run to be resumed; otherwise one is made.
        made: with what that run was made, which data and network must still be.
        read: what `config.data` is, where it has been read already.
        profile: time the units also where no cut depends on it, for a plan to be looked at.

    Raises:
        UserError: for anything that cannot be run.
    """
    in_memory = dataset is not None
    given = tuple(n for n, v in (("data", dataset), ("network", model)) if v is not None)
    config = config.model_copy(update={"run": config.run.model_copy(update={"given": given})})
    dataset = dataset or read or load_dataset(config.data)
    config = with_compute(config)
    data = data_fingerprint(dataset)
    if made is not None:
        check_data(made, data)
    training = config.training
    batches = Batches(
        dataset,
        seed=training.seed,
        batch=training.batch,
        shards=training.shards,
        augment=config.data.augment,
    )
    config = with_absolute_paths(config)  # not before: messages name what was given
    if model is None:
        check_direction(config)
        model = build_network(
            config.network,
            dataset.input_shape,
            dataset.classes,
            training.seed,
            tokens=dataset.tokens,
        )
    check_surroundings()
    units = units_of(model)
    if made is not None:
        check_units(made, units)
    check_modules(units, fused=config.update.fused)
    if config.precision.compute == "float64":
        widen(model)
    own = "network" in given or isinstance(config.network, CustomSettings)
    threads = threads_of(config)
    steps = training.steps or max(1, round(training.epochs * batches.steps_per_epoch))
    types = types_of(config, dataset, model, units) if own else [numerics_of(config).dtype]
    program_of = partial(program_for, config, dataset, model, steps, types)
    if plan is None:
        kind = first_type(config, model)
        plan = _plan(config, units, dataset, batches, program_of, threads, kind, profile=profile)
    else:  # what actors reserve may change on resuming
        cpus, gpus = _cpus(config, len(plan.blocks)), config.engine.resources.gpus
        reserved = (b.model_copy(update={"cpus": cpus, "gpus": gpus}) for b in plan.blocks)
        plan = Plan(blocks=tuple(reserved))
        if plan.blocks[0].input_shape != dataset.input_shape:
            raise UserError(
                f"the data have rows of shape {dataset.input_shape} and the run had "
                f"{plan.blocks[0].input_shape}: resume it with its own data"
            )
    program = program_of(tuple(b.output_shape for b in plan.blocks))
    blocks = plan.units_of_blocks(units)
    if own:
        ends = accumulate(len(block) for block in blocks)
        program = replace(program, output_types=tuple(types[end - 1] for end in ends))
    shard = sample_rows(config, dataset, training.batch // training.shards, program.input_type)
    check_program(program, blocks, shard)
    if own:
        rehearse(program, blocks, *batches.shard(0, 0))
    check_lanes(program, config.lanes.max)
    if config.engine.recovery.mode == "local":
        check_local_recovery(program)
    every = training.evaluate_every or batches.steps_per_epoch
    check_agreement(config, steps, every)
    config = _with_threads(config, threads)
    return Prepared(
        config,
        dataset,
        model,
        units,
        plan,
        program,
        batches,
        Schedule(steps, every, config.checkpoints.every, config.checkpoints.every_seconds),
        threads,
        _source(config, len(plan.blocks), threads),
        in_memory,
        fingerprints_of(config, data, plan, units),
    )


def _with_threads(config: RunConfig, threads: int) -> RunConfig:
    """Fix the number of threads: results depend on it, and a resume may see another machine."""
    resources = config.engine.resources.model_copy(update={"threads": threads})
    engine = config.engine.model_copy(update={"resources": resources})
    return config.model_copy(update={"engine": engine})


def _source(config: RunConfig, blocks: int, threads: int) -> SourcePlace:
    """Who makes the batches: an actor of its own only where the blocks leave it a core."""
    busy = 0 if config.engine.resources.gpus else threads * blocks * config.lanes.min
    return config.engine.source or ("actor" if busy < available_cpus() else "block1")


def available_cpus() -> float:
    """CPUs that nobody has reserved in the cluster, or cores of this machine."""
    if not ray.is_initialized():
        return float(cores())
    return sum(node.get("CPU", 0.0) for node in free_resources())


def _cpus(config: RunConfig, blocks: int) -> float:
    if config.engine.resources.cpus is not None:
        return config.engine.resources.cpus
    return even_cpus(available_cpus(), blocks * config.lanes.min)


def _plan(
    config: RunConfig,
    units: Sequence[Unit],
    dataset: Dataset,
    batches: Batches,
    program_of: Callable[[Sequence[tuple[int, ...]]], Program],
    threads: int,
    kind: torch.dtype,
    *,
    profile: bool,
) -> Plan:
    """Cut the network by what it takes as it will run: in type, in threads, under the rule."""
    numerics, training, balance = numerics_of(config), config.training, config.blocks.balance
    sample = sample_rows(config, dataset, training.batch, kind)
    cpus, gpus = _cpus(config, config.blocks.count), config.engine.resources.gpus
    measure = None
    if balance != "parameters" and not isinstance(config.rule, Backprop):
        shard = sample[: training.batch // training.shards]
        measure = RuleCosts(program_of, batches, shard, balance=balance, threads=threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with numerics.autocast():
            return make_plan(
                units,
                config.blocks,
                sample,
                cpus=cpus,
                gpus=gpus,
                # A block is moved when it takes more of a step than its share was.
                profile=profile or config.engine.rebalance is not None,
                measure=measure,
            )
    finally:
        torch.set_num_threads(before)
