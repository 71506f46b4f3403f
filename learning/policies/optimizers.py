"""torch's optimizers without its compiler, made from settings.

torch marks methods of its optimizers for `torch.compile` by wrappers which import the compiler at
their first call: a second of CPU time in every process that makes an optimizer. Here the methods
below those wrappers are called; the same arithmetic, in the same order. The wrapper of `step` also
turns gradients off, which the caller does here.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn

from learning.errors import UserError
from learning.settings import AdamWSettings, OptimizerSettings


class _Unmarked(torch.optim.Optimizer):
    """The methods of every optimizer, below torch's wrappers."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)


class SGD(_Unmarked, torch.optim.SGD):
    """`torch.optim.SGD`; call `step` where gradients are off."""

    step = inspect.unwrap(torch.optim.SGD.step)


class AdamW(_Unmarked, torch.optim.AdamW):
    """`torch.optim.AdamW`; call `step` where gradients are off."""

    step = inspect.unwrap(torch.optim.AdamW.step)


def block_lr(lr: float | tuple[float, ...], index: int) -> float:
    """The learning rate of a block.

    Raises:
        UserError: when rates are listed, and none for this block.
    """
    if not isinstance(lr, tuple):
        return lr
    if not 1 <= index <= len(lr):
        raise UserError(
            f"optimizer.lr lists {len(lr)} values, but there is a block {index}: give one a block"
        )
    return lr[index - 1]


def make_optimizer(
    parameters: list[nn.Parameter], settings: OptimizerSettings, lr: float
) -> torch.optim.Optimizer:
    """The optimizer of some parameters; `lr` is their block's."""
    if isinstance(settings, AdamWSettings):
        return AdamW(parameters, lr, settings.betas, settings.eps, settings.weight_decay)
    return SGD(
        parameters,
        lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
