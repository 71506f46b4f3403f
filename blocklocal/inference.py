"""Trained networks outside of training: load a run's weights into the original module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from blocklocal.config import RunConfig, load_config, make_config
from blocklocal.identity import (
    check_checkpoint,
    check_data,
    check_settings,
    check_units,
    made_of,
)
from learning.data import Batches, Dataset, load_dataset
from learning.errors import UserError
from learning.expected import check_model
from learning.fingerprints import data_fingerprint
from learning.networks import build_network
from learning.numerics import Numerics
from learning.units import units_of
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import model_state


def load_run(
    run: RunDirectory, step: int, words: Sequence[str] = ()
) -> tuple[RunConfig, Dataset, nn.Module]:
    """The configuration, the data and the original module with a checkpoint's weights.

    Args:
        words: `data.key=value` settings that name other data than those of the run.

    Raises:
        UserError: when there is no such checkpoint, it is not the run's, data or network have
            changed since, or the run's data were given in Python.
    """
    for said in words:
        if not said.startswith("data."):
            raise UserError(f"{said!r} does not say which data: data.key=value settings do")
    config, made = make_config(run.config), made_of(run)
    check_settings(made, run, config)
    if config.run.given:
        raise UserError(
            f"{run.path} was trained in Python with {' and '.join(config.run.given)} in memory: "
            "export its weights and load them there"
        )
    found = run.checkpoints.load(step)
    check_checkpoint(made, found)
    state = model_state(found.state)
    dataset = load_dataset(config.data)
    check_data(made, data_fingerprint(dataset))
    if words:
        other = load_dataset(load_config(None, words, base=run.config).data)
        dataset = _in_place_of(dataset, other)
    seed = config.training.seed
    model = build_network(
        config.network, dataset.input_shape, dataset.classes, seed, tokens=dataset.tokens
    )
    check_units(made, units_of(model))
    if config.precision.compute == "float64":
        model = model.double()
    check_model(model.state_dict(), state, run.path)
    model.load_state_dict(state)
    return config, dataset, model


def _in_place_of(own: Dataset, other: Dataset) -> Dataset:
    """Other data as a network sees them that was trained on its own: normalised by its numbers.

    Raises:
        UserError: when rows or labels are of another kind.
    """
    kinds = [(d.preprocessing.rows, d.input_shape) for d in (other, own)]
    if kinds[0] != kinds[1]:
        rows, shape = kinds[0]
        raise UserError(
            f"the data have {rows} rows of shape {shape} and the run had {kinds[1][0]} ones of "
            f"{kinds[1][1]}: evaluate it on data of its own kind"
        )
    if other.classes > own.classes:
        raise UserError(
            f"the data have {other.classes} classes and the network knows {own.classes}: evaluate "
            "it on data of those"
        )
    return replace(other, preprocessing=own.preprocessing)


@torch.no_grad()
def evaluate_model(
    model: nn.Module, dataset: Dataset, split: str, config: RunConfig
) -> tuple[float, float]:
    """Mean loss and accuracy of a module on a split, over all labels of all rows.

    Raises:
        UserError: for an unknown or empty split.
    """
    if split not in ("train", "validation", "test") or not len(dataset.split(split)):
        raise UserError(f"split = {split!r} has no rows: use test, validation or train")
    numerics = Numerics(config.precision, torch.device("cpu"))
    numerics.prepare(model)
    model.eval()
    training = config.training
    batches = Batches(
        dataset, seed=training.seed, batch=training.batch, augment=config.data.augment
    )
    loss, correct, count = 0.0, 0, 0
    for x, y in batches.evaluation(split, training.evaluation_batch):
        with numerics.autocast():
            scores = model(numerics.arrange(x))
        scores = scores if scores.dtype == torch.float64 else scores.float()
        # Scores of tokens (B, T, V) are those of B * T samples.
        loss += F.cross_entropy(scores.flatten(0, -2), y.flatten(), reduction="sum").item()
        correct += int((scores.argmax(-1) == y).sum())
        count += y.numel()
    return loss / count, correct / count
