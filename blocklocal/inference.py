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
from learning.data.preprocessing import Preprocessing
from learning.errors import UserError, shown
from learning.fingerprints import data_fingerprint
from learning.numerics import Numerics, input_type
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
    if words:
        other = load_dataset(load_config(None, words, base=run.config).data)
        return config, _seen_as(other, known), trained
    dataset = load_dataset(config.data)
    check_data(made_of(run, warn=False), data_fingerprint(dataset))
    return config, replace(dataset, preprocessing=known), trained


def _seen_as(data: Dataset, trained: Preprocessing) -> Dataset:
    """Other data as a network sees them that was trained on its own: prepared as those were.

    Raises:
        UserError: when rows or labels are of another kind.
    """
    here = data.preprocessing
    if (here.rows, here.input_shape) != (trained.rows, trained.input_shape):
        raise UserError(
            f"the data have {here.rows} rows of shape {here.input_shape} and the run had "
            f"{trained.rows} ones of {trained.input_shape}: evaluate it on data of its own kind"
        )
    if here.classes > trained.classes:
        raise UserError(
            f"the data have {here.classes} classes and the network knows {trained.classes}: "
            "evaluate it on data of those"
        )
    for name in ("class_names", "vocabulary"):
        names = getattr(here, name), getattr(trained, name)
        if None not in names and names[0] != names[1]:
            raise UserError(
                f"the data number {name} as {shown(names[0])} and the run as {shown(names[1])}: "
                "evaluate it on data that number them alike"
            )
    return replace(data, preprocessing=trained)


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
    taken = input_type(model)
    training = config.training
    batches = Batches(
        dataset, seed=training.seed, batch=training.batch, augment=config.data.augment
    )
    loss, correct, count = 0.0, 0, 0
    for x, y in batches.evaluation(split, training.evaluation_batch):
        with numerics.autocast():
            x = numerics.arrange(x)
            scores = model(x.to(taken) if x.is_floating_point() else x)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        # Scores of tokens (B, T, V) are those of B * T samples.
        loss += F.cross_entropy(scores.flatten(0, -2), y.flatten(), reduction="sum").item()
        correct += int((scores.argmax(-1) == y).sum())
        count += y.numel()
    return loss / count, correct / count
