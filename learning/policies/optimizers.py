"""torch's optimizers without its compiler.

torch marks methods of its optimizers for `torch.compile` by wrappers which import the compiler at
their first call: a second of CPU time in every process that makes an optimizer. Here the methods
below those wrappers are called; the same arithmetic, in the same order. The wrapper of `step` also
turns gradients off, which the caller does here.
"""

from __future__ import annotations

import inspect

import torch


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
