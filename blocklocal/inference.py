"""Trained networks on the data of their runs, or on other data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from blocklocal.config import RunConfig, load_config, make_config
from blocklocal.identity import check_data, made_of
from blocklocal.loading import load_checkpoint
from learning.data import Batches, Dataset, load_dataset
from learning.errors import UserError
from learning.fingerprints import data_fingerprint
from learning.numerics import Numerics
from learning.prediction import Trained
from orchestrator.rundir import RunDirectory


def load_run(
    run: RunDirectory, step: int, words: Sequence[str] = ()
) -> tuple[RunConfig, Dataset, Trained]:
    """The configuration, the data as a network of a checkpoint sees them, and that network.

    Args:
        words: `data.key=value` settings that name other data than those of the run.

    Raises:
        UserError: when there is no such checkpoint, it is not the run's, data or network have
            changed since, or the run's data were given in Python.
    """
    for said in words:
        if not said.startswith("data."):
            raise UserError(f"{said!r} does not say which data: data.key=value settings do")
    config = make_config(run.config)
    if config.run.given:
        raise UserError(
            f"{run.path} was trained in Python with {' and '.join(config.run.given)} in memory: "
            "use blocklocal.load(run, model=...) there"
        )
    config, trained = load_checkpoint(run, step)
    known = trained.known  # what it was trained to see, not what its rows are normalised by now
    dataset = load_dataset(config.data)
    check_data(made_of(run), data_fingerprint(dataset))
    dataset = replace(dataset, preprocessing=known)
    if words:
        other = load_dataset(load_config(None, words, base=run.config).data)
        dataset = _in_place_of(dataset, other)
    return config, dataset, trained


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
