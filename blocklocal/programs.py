"""The program of a configuration: its rule for the blocks of a network, in the types they have."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.config import RunConfig
from learning.build import Program
from learning.data import Dataset, ReversalSettings, TextSettings
from learning.errors import UserError
from learning.learners.base import LearnerSettings
from learning.networks import GPTSettings
from learning.numerics import Numerics, input_type
from learning.policies.subspace import rank_of
from learning.units import Unit
from orchestrator.profile import unit_types
from orchestrator.rehearsal import FEW


def program_for(
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
    check_output(output_shapes[-1], dataset)
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
        input_type=first_type(config, model),
        auxiliary_type=torch.float64 if torch.float64 in types else torch.float32,
        all_train=not model.training,
    )


def first_type(config: RunConfig, model: nn.Module) -> torch.dtype:
    """The type in which numbers enter the network."""
    return torch.float64 if config.precision.compute == "float64" else input_type(model)


def types_of(
    config: RunConfig, dataset: Dataset, model: nn.Module, units: Sequence[Unit]
) -> list[torch.dtype]:
    """The type of each unit's output, in the types that the network has."""
    kind, shard = first_type(config, model), config.training.batch // config.training.shards
    try:
        return unit_types(units, sample_rows(config, dataset, min(FEW, shard), kind))
    except UserError:  # a unit may be made for shards of one size
        return unit_types(units, sample_rows(config, dataset, shard, kind))


def check_direction(config: RunConfig) -> None:
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


def check_output(shape: Sequence[int], dataset: Dataset) -> None:
    """Check that the network ends with a score for each class, for each label of a row.

    Raises:
        UserError: when it does not.
    """
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


def numerics_of(config: RunConfig) -> Numerics:
    """The run's numeric policy, on this process's CPU."""
    return Numerics(config.precision, torch.device("cpu"))


def sample_rows(
    config: RunConfig, dataset: Dataset, rows: int, kind: torch.dtype | None = None
) -> Tensor:
    """Inputs of the type that blocks receive, `kind` for numbers; their values do not matter."""
    dtype = torch.int64 if dataset.tokens else kind or numerics_of(config).dtype
    return torch.zeros(rows, *dataset.input_shape, dtype=dtype)
