"""Trained networks outside of training: load a run's weights into the original module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from blocklocal.config import RunConfig, make_config
from learning.data import Batches, Dataset, load_dataset
from learning.errors import UserError
from learning.networks import build_network
from learning.numerics import Numerics
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import model_state


def load_run(run: RunDirectory, step: int) -> tuple[RunConfig, Dataset, nn.Module]:
    """The configuration, the data and the original module with a checkpoint's weights.

    Raises:
        UserError: when there is no such checkpoint, or the run's data were given in Python.
    """
    config = make_config(run.config)
    if config.run.given:
        raise UserError(
            f"{run.path} was trained in Python with {' and '.join(config.run.given)} in memory: "
            "export its weights and load them there"
        )
    state = model_state(run.checkpoints.load(step).state)
    dataset = load_dataset(config.data)
    seed = config.training.seed
    model = build_network(
        config.network, dataset.input_shape, dataset.classes, seed, tokens=dataset.tokens
    )
    if config.precision.compute == "float64":
        model = model.double()
    model.load_state_dict(state)
    return config, dataset, model


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
