"""From a configuration to a run that could start: everything is checked, nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import ray
import torch
from torch import Tensor, nn

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.agreement import check_agreement
from blocklocal.balancing import RuleCosts
from blocklocal.config import RunConfig
from blocklocal.identity import Made, check_data, check_units, fingerprints_of
from blocklocal.precision import cores, threads_of, with_compute
from blocklocal.resuming import with_absolute_paths
from learning.build import Program
from learning.checks import check_lanes, check_local_recovery, check_program
from learning.data import Batches, Dataset, ReversalSettings, TextSettings, load_dataset
from learning.errors import UserError, exits_named
from learning.fingerprints import data_fingerprint
from learning.learners.base import LearnerSettings
from learning.module_checks import check_modules
from learning.networks import GPTSettings, build_network
from learning.networks.custom import CustomSettings
from learning.numerics import Numerics, input_type, widen
from learning.policies.subspace import rank_of
from learning.rules import Backprop
from learning.surroundings import check_surroundings
from learning.units import Unit, units_of
from orchestrator.fingerprints import Fingerprints
from orchestrator.placement import even_cpus, free_resources
from orchestrator.plan import Plan
from orchestrator.planning import make_plan
from orchestrator.profile import unit_types
from orchestrator.rehearsal import FEW, rehearse
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
        _check_direction(config)
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
    types = _types(config, dataset, model, units) if own else [_numerics(config).dtype]
    program_of = partial(_program, config, dataset, model, steps, types)
    if plan is None:
        kind = _input_type(config, model)
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


def _program(
    config: RunConfig,
    dataset: Dataset,
    model: nn.Module,
    steps: int,
    types: Sequence[torch.dtype],
    output_shapes: Sequence[tuple[int, ...]],
) -> Program:
    """The configuration's rule for blocks with these outputs.

    Raises:
        UserError: when the last one is no score for each class.
    """
    _check_output(output_shapes[-1], dataset)
    training = config.training
    settings = LearnerSettings(
        optimizer=config.optimizer,
        schedule=config.schedule,
        precision=config.precision,
        seed=training.seed,
        batch=training.batch,
        shards=training.shards,
        steps=steps,
        update=config.update,
        codec=config.codec,
        outer=config.lanes.outer,
    )
    return Program(
        config.rule,
        settings,
        tuple(output_shapes),
        dataset.classes,
        input_shape=dataset.input_shape,
        target_shape=dataset.target_shape,
        subspace=rank_of(model),
        input_type=_input_type(config, model),
        auxiliary_type=torch.float64 if torch.float64 in types else torch.float32,
        all_train=not model.training,
    )


def _input_type(config: RunConfig, model: nn.Module) -> torch.dtype:
    return torch.float64 if config.precision.compute == "float64" else input_type(model)


def _types(
    config: RunConfig, dataset: Dataset, model: nn.Module, units: Sequence[Unit]
) -> list[torch.dtype]:
    """The type of each unit's output, in the types that the network has."""
    kind, shard = _input_type(config, model), config.training.batch // config.training.shards
    try:
        return unit_types(units, sample_rows(config, dataset, min(FEW, shard), kind))
    except UserError:  # a unit may be made for shards of one size
        return unit_types(units, sample_rows(config, dataset, shard, kind))


def _check_direction(config: RunConfig) -> None:
    """Refuse a transformer that sees too much or too little of a row for the labels it is given."""
    data, network = config.data, config.network
    if not isinstance(network, GPTSettings):
        return
    if isinstance(data, TextSettings) and not network.causal:
        raise UserError(
            "network.causal = false sees the characters that it is to predict (data.kind = text): "
            "set network.causal = true"
        )
    if isinstance(data, ReversalSettings) and network.causal:
        raise UserError(
            "network.causal = true cannot see the end of a row, with which its reversal begins "
            "(data.kind = reversal): set network.causal = false"
        )


def _check_output(shape: Sequence[int], dataset: Dataset) -> None:
    shape = tuple(shape)
    if shape == (*dataset.target_shape, dataset.classes):
        return
    if dataset.target_shape:
        raise UserError(
            f"the network gives an output of shape {shape} for labels of shape "
            f"{dataset.target_shape} of {dataset.classes} classes: end it with {dataset.classes} "
            "scores for each label"
        )
    raise UserError(
        f"the network gives an output of shape {shape} for {dataset.classes} classes: end it with "
        f"{dataset.classes} scores or set data.classes"
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


def _numerics(config: RunConfig) -> Numerics:
    return Numerics(config.precision, torch.device("cpu"))


def sample_rows(
    config: RunConfig, dataset: Dataset, rows: int, kind: torch.dtype | None = None
) -> Tensor:
    """Inputs of the type that blocks receive, `kind` for numbers; their values do not matter."""
    dtype = torch.int64 if dataset.tokens else kind or _numerics(config).dtype
    return torch.zeros(rows, *dataset.input_shape, dtype=dtype)


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
    numerics, training, balance = _numerics(config), config.training, config.blocks.balance
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
