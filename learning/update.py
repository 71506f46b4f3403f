"""Updates: shard gradients added in one fixed tree, clipped, and handed to the optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from learning.errors import UserError
from learning.schedules import learning_rate_factor
from learning.settings import (
    AdamWSettings,
    OptimizerSettings,
    ScheduleSettings,
)

Gradients = list[Tensor | None]


class GradientTree:
    """Adds shard gradients pairwise, in a tree that depends on the number of shards alone.

    The sum must not depend on who computed which shard, and floating-point addition is not
    associative: equal-sized neighbours are merged as soon as both are there, as a binary counter
    carries.
    """

    def __init__(self) -> None:
        self._stack: list[tuple[int, Gradients]] = []

    def add(self, gradients: Gradients) -> None:
        """Add the gradients of the next shard, in shard order."""
        size = 1
        while self._stack and self._stack[-1][0] == size:
            gradients = _sum(self._stack.pop()[1], gradients)
            size *= 2
        self._stack.append((size, gradients))

    def total(self) -> Gradients:
        """The sum over all shards added; the tree is empty afterwards."""
        _, total = self._stack.pop()
        while self._stack:
            total = _sum(self._stack.pop()[1], total)
        return total


def _sum(left: Gradients, right: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


class Updater:
    """The optimizer of one learner: its parameters by name, schedule, clipping, shard sums."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        *,
        index: int,
        steps: int,
        batch: int,
    ) -> None:
        named = [(n, p) for n, p in parameters if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.lr = _block_lr(optimizer.lr, index)
        self.clip = optimizer.clip
        self.schedule, self.steps, self.batch = schedule, steps, batch
        self.optimizer = _make_optimizer(self.parameters, optimizer, self.lr)
        self._tree = GradientTree()
        self._shard: Gradients = [None] * len(self.parameters)

    def add(self, gradients: Sequence[Tensor | None], start: int = 0, weight: float = 1.0) -> None:
        """Add gradients of `parameters[start:]` to the current shard's."""
        for i, g in enumerate(gradients, start=start):
            if g is not None:
                g = g if weight == 1.0 else g * weight
                held = self._shard[i]
                self._shard[i] = g if held is None else held + g

    def end_shard(self) -> None:
        """Close the current shard: its gradients enter the tree."""
        self._tree.add(self._shard)
        self._shard = [None] * len(self.parameters)

    @torch.no_grad()
    def step(self, step: int) -> None:
        """Update with the mean over the global batch of all shards' gradients."""
        if self.optimizer is None:
            return
        for parameter, gradient in zip(self.parameters, self._tree.total(), strict=True):
            parameter.grad = None if gradient is None else gradient / self.batch
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        lr = self.lr * learning_rate_factor(self.schedule, step, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Tensor]:
        """Optimizer state by parameter name: `<parameter>.<key>`."""
        if self.optimizer is None:
            return {}
        return {
            f"{name}.{key}": value
            for name, parameter in zip(self.names, self.parameters, strict=True)
            for key, value in self.optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned; copies, and moves to the parameters' devices."""
        if self.optimizer is None:
            return
        by_index: dict[int, dict[str, Tensor]] = {}
        for full_name, value in state.items():
            name, key = full_name.rsplit(".", 1)
            i = self.names.index(name)
            if value.shape == self.parameters[i].shape:
                # The parameter's own layout, so that elementwise kernels take the same path.
                value = torch.empty_like(self.parameters[i], dtype=value.dtype).copy_(value)
            else:
                value = value.clone()  # AdamW counts its steps in place
            by_index.setdefault(i, {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": by_index, "param_groups": groups})


def _block_lr(lr: float | tuple[float, ...], index: int) -> float:
    if not isinstance(lr, tuple):
        return lr
    if not 1 <= index <= len(lr):
        raise UserError(
            f"optimizer.lr lists {len(lr)} values, but there is a block {index}: give one a block"
        )
    return lr[index - 1]


def _make_optimizer(
    parameters: list[nn.Parameter], settings: OptimizerSettings, lr: float
) -> torch.optim.Optimizer | None:
    if not parameters:  # a block of parameter-free units has nothing to update
        return None
    if isinstance(settings, AdamWSettings):
        return torch.optim.AdamW(
            parameters, lr, settings.betas, settings.eps, settings.weight_decay
        )
    return torch.optim.SGD(
        parameters,
        lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
