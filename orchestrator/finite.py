"""Losses and weights that are not finite are refused before they replace a good checkpoint."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor

from learning.errors import NonFiniteLossError, UserError
from orchestrator.events import Evaluated, SnapshotTaken
from orchestrator.incidents import Incident
from orchestrator.losses import Loss


def not_finite(error: NonFiniteLossError) -> Incident:
    """A loss that is not finite comes back in each replay: it ends the run."""
    loss = Loss(f"block{error.block}", "not finite", "", 0, str(error))
    return Incident(0, time.time(), error.step, [loss], ended=True)


def check_finite(event: SnapshotTaken) -> None:
    """Refuse to replace a good checkpoint by one that no loss has met yet."""
    for learner, tensors in event.state.items():
        for name, tensor in tensors.items():
            if not _is_finite(tensor):
                raise UserError(
                    f"{name} of {learner} is not finite after step {event.step}: training stopped "
                    "and the last checkpoint is kept; lower optimizer.lr or set optimizer.clip"
                )


def _is_finite(tensor: Tensor) -> bool:
    """Whether all values are finite.

    A sum of which one term is not finite is not either, and takes a fortieth of the time. As finite
    terms may add up to too much, each of them is looked at where it is not.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def check_losses(event: Evaluated) -> None:
    """An update may end in infinite weights, which an evaluation sees before the next step."""
    for name, values in event.metrics.items():
        if not math.isfinite(values["loss"]):
            raise NonFiniteLossError(int(name.removeprefix("block")), event.step, values["loss"])
