"""Hooks that users register on parameters: called once an update, with the gradient of the batch.

`Tensor.register_hook` would be called by each backward pass, with the sum over a shard's samples of
one loss. In a plain training loop a hook sees the mean over the batch, of everything that is
learnt from: so it does here, whatever the shards, losses and lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Hook = Callable[[Tensor], Any]


def hooks_of(tensor: Tensor) -> tuple[list[Hook], list[Hook]]:
    """The gradient hooks of a tensor, and those that follow the accumulation of its gradient."""
    before: dict[int, Hook] | None = tensor._backward_hooks
    after: dict[int, Hook] | None = getattr(tensor, "_post_accumulate_grad_hooks", None)
    return list((before or {}).values()), list((after or {}).values())


class GradientHooks:
    """The hooks of some parameters, taken off them so that no backward pass calls them."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = parameters
        found = {i: hooks_of(p) for i, p in enumerate(parameters)}
        self._hooks = {i: both for i, both in found.items() if any(both)}
        for i in self._hooks:
            for registered in (
                parameters[i]._backward_hooks,
                getattr(parameters[i], "_post_accumulate_grad_hooks", None),
            ):
                if registered:
                    registered.clear()

    def __bool__(self) -> bool:
        return bool(self._hooks)

    def change(self, gradients: dict[int, Tensor]) -> None:
        """Let hooks change the gradients, by position, that the optimizer is to get."""
        for i, (before, _) in self._hooks.items():
            for hook in before if i in gradients else ():
                changed = hook(gradients[i])
                if changed is not None:
                    gradients[i] = changed

    def accumulated(self) -> None:
        """Tell the parameters' hooks that their `grad` is there; they may change or take it."""
        for i, (_, after) in self._hooks.items():
            for hook in after if self._parameters[i].grad is not None else ():
                hook(self._parameters[i])


def attach(tensor: Tensor, before: Sequence[Hook], after: Sequence[Hook]) -> None:
    """Register hooks on a tensor."""
    for hook in before:
        tensor.register_hook(hook)
    for hook in after:
        tensor.register_post_accumulate_grad_hook(hook)
