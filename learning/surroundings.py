"""What PyTorch holds for a whole process and a network computes by: the same in every process.

An actor is a process of its own. What was set here before training is set there too; what cannot be
is refused.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.modules import module as nn_module

from learning.errors import UserError


class Surroundings(NamedTuple):
    """Settings of a process that change what its kernels compute.

    Attributes:
        default_type: of tensors that are made without a type.
        matmul_precision: see `torch.set_float32_matmul_precision`.
        deterministic: see `torch.use_deterministic_algorithms`.
        warn_only: whether a kernel that is not deterministic is told of instead of refused.
    """

    default_type: torch.dtype
    matmul_precision: str
    deterministic: bool
    warn_only: bool

    @staticmethod
    def here() -> Surroundings:
        """Those of this process."""
        return Surroundings(
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )

    def apply(self) -> None:
        """Make them those of this process; what is so already is not set."""
        now = Surroundings.here()
        if now.default_type != self.default_type:
            torch.set_default_dtype(self.default_type)
        if now.matmul_precision != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        if now[2:] != self[2:]:
            torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)


def check_surroundings() -> None:
    """Check that nothing is in force here that actors could not be given.

    Raises:
        UserError: naming it, and what to do instead.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise UserError(
            "training was asked for under torch.autocast, which actors are not under: leave it and "
            "set precision.compute = bfloat16"
        )
    if (device := torch.get_default_device()).type != "cpu":
        raise UserError(
            f"torch.set_default_device({str(device)!r}) is in force, but blocks choose their own "
            "device: set it back to cpu, and use engine.resources.gpus for GPUs"
        )
    if nn_module._has_any_global_hook():
        raise UserError(
            "a hook on all modules is registered (torch.nn.modules.module.register_module_*), "
            "which actors do not have: register it on the modules that it is for"
        )
    if torch.is_anomaly_enabled():
        raise UserError(
            "torch.autograd.set_detect_anomaly is in force, which actors are not under: turn it off"
        )
