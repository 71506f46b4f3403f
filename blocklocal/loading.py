"""Trained networks of runs: weights and preprocessing of a checkpoint, without the data."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from blocklocal.config import RunConfig, make_config
from blocklocal.identity import check_checkpoint, check_settings, check_units, made_of
from learning.data import Preprocessing, load_dataset
from learning.errors import UserError
from learning.expected import check_model
from learning.module_state import weights_of
from learning.networks import build_network
from learning.numerics import widen
from learning.prediction import Trained
from learning.units import units_of
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import load_model, model_state


def load(
    run: str | Path, checkpoint: str | int | None = None, *, model: nn.Module | None = None
) -> Trained:
    """Load what a run has trained: `load(run).predict(x)` gives the labels of raw rows.

    Args:
        run: its directory.
        checkpoint: "best", "last" or a step; None: the best, or the last where none is.
        model: the run's network, which takes the weights; needed for runs of `fit`, whose network
            is not in their settings.

    Raises:
        UserError: when there is no such run or checkpoint, or the network is another one.
    """
    directory = RunDirectory.open(run)
    return load_checkpoint(directory, step_of(directory, checkpoint), model)[1]


def step_of(run: RunDirectory, checkpoint: str | int | None) -> int:
    """The step of a checkpoint; without validation rows no checkpoint is the best one."""
    which = checkpoint
    if which is None:
        which = "last" if run.checkpoints.best is None else "best"
    return run.checkpoints.resolve(which)


def load_checkpoint(
    run: RunDirectory, step: int, model: nn.Module | None = None
) -> tuple[RunConfig, Trained]:
    """The configuration, and the original module with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: when there is no such checkpoint, it is not the run's, or the network is another.
    """
    config, made = make_config(run.config), made_of(run)
    check_settings(made, run, config)
    if model is None and "network" in config.run.given:
        raise UserError(
            f"{run.path} was trained in Python with a network in memory: give it, "
            "blocklocal.load(run, model=...)"
        )
    found = run.checkpoints.load(step)
    check_checkpoint(made, found)
    if model is None:
        model = _network(config, found.preprocessing)
    check_units(made, units_of(model))
    if config.precision.compute == "float64":
        widen(model)
    check_model(weights_of(model), model_state(found.state), run.path)
    load_model(model, found.state)
    model.eval()
    source, batch = f"checkpoint {step} of {run.path}", config.training.evaluation_batch
    return config, Trained(model, found.preprocessing, config.precision, batch, source)


def _network(config: RunConfig, known: Preprocessing | None) -> nn.Module:
    if known is None:  # of a checkpoint before there was any: shape and classes are as they were
        known = load_dataset(config.data).preprocessing
    seed = config.training.seed
    shape, classes = known.input_shape, known.classes
    return build_network(config.network, shape, classes, seed, tokens=known.tokens)
