"""Updates: shard gradients added in one fixed tree, clipped, and handed to the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from learning.messages import Message
from learning.numerics import backward
from learning.policies.gradient_hooks import GradientHooks
from learning.policies.optimizers import block_lr, make_optimizer
from learning.policies.proximal import ProximalPreconditioner
from learning.policies.schedules import learning_rate_factor
from learning.policies.sums import ShardSums, apart
from learning.policies.tree import Gradients
from learning.settings import OptimizerSettings, ScheduleSettings

Observer = Callable[[dict[str, Tensor]], None]
"""Sees the gradients that the optimizer gets, by parameter name: means over the global batch, with
the weights of their losses, preconditioned, before clipping. They are only lent: the update changes
them in place."""


class Updater:
    """The optimizer of one learner: its parameters by name, schedule, clipping, shard sums.

    An update has two phases: shards end one by one, and `step` adds them up. Where lanes share the
    shards of a step, each tells the others its `partial`, and each takes the step with those of
    all: the same additions, so the same bits in every lane as in a single one. Where a lane learns
    alone, it takes the step with its own.

    Attributes:
        observer: called with each update's gradients, for diagnostics.
        hooks: that the user registered on the parameters.
    """

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        *,
        index: int,
        steps: int,
        batch: int,
        shards: int = 1,
        alone: bool = False,
        proximal: ProximalPreconditioner | None = None,
    ) -> None:
        named = [(n, p) for n, p in parameters if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.lr = block_lr(optimizer.lr, index)
        self.clip = optimizer.clip
        self.schedule, self.steps, self.batch = schedule, steps, batch
        self.proximal = proximal
        self.observer: Observer | None = None
        self.hooks = GradientHooks(self.parameters)
        self._portions = self._divide(len(named))
        self._optimizers = [
            make_optimizer([self.parameters[i] for i in portion], optimizer, self.lr)
            for portion in self._portions
        ]
        self._sums = ShardSums(
            self.parameters,
            moments=len(proximal.layers) if proximal else 0,
            batch=batch,
            shards=shards,
            alone=alone,
        )

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The optimizer (of the first parameter, where each has its own); None without any."""
        return self._optimizers[0] if self._optimizers else None

    def recording(self) -> contextlib.AbstractContextManager[list[Tensor | None]]:
        """A context for the forward pass of a shard; what it gives is for `end_shard`."""
        return contextlib.nullcontext([]) if self.proximal is None else self.proximal.recording()

    def backward(
        self,
        output: Tensor,
        gradient: Tensor | None,
        parameters: Sequence[Tensor],
        inputs: Sequence[Tensor] = (),
        *,
        step: int,
        start: int = 0,
        weight: float = 1.0,
        retain_graph: bool = False,
    ) -> Gradients:
        """Take a gradient at `output` through its graph, and add that of the parameters.

        Args:
            output: whose graph it is.
            gradient: of the shape of `output`; None for a scalar.
            parameters: leaves of the graph that stand for `self.parameters[start:]`: those
                themselves, or the copies that the graph was made with.
            inputs: other leaves.
            step: of the update that these gradients are for.
            start: position of the first of `parameters`.
            weight: of the loss, in the parameters' update.
            retain_graph: whether another gradient goes through the graph later.

        Returns:
            The gradients of `inputs`, not weighted; None where the output does not depend on one.
        """
        leaves = [*parameters, *inputs]
        if not output.requires_grad or not leaves:
            return [None] * len(inputs)
        for leaf in leaves:
            leaf.grad = None  # autograd would add to what a user left there
        backward(output, gradient, retain_graph=retain_graph, inputs=leaves)
        gradients = [leaf.grad for leaf in leaves]
        for leaf in leaves:
            leaf.grad = None
        own, others = gradients[: len(parameters)], gradients[len(parameters) :]
        self._sums.enter(apart(own, [gradient, *others]), start, weight)
        return others

    def add(self, gradients: Sequence[Tensor | None], start: int = 0, weight: float = 1.0) -> None:
        """Add gradients of `parameters[start:]` to the current shard's; they stay as they are."""
        self._sums.lend()
        self._sums.enter(gradients, start, weight)

    def end_shard(self, shard: int = 0, moments: Sequence[Tensor | None] | None = None) -> None:
        """Close the current shard: its gradients enter the tree. Shards end in their order.

        Args:
            shard: its number in the step.
            moments: what `recording` gave in the shard's forward pass. They ride in the same tree,
                behind the gradients, so that they too are added in a fixed order.
        """
        self._sums.end_shard(shard, moments)

    def partial(self) -> Message:
        """What the shards that ended here come to, for the other lanes' `step`; only lent."""
        return self._sums.partial()

    @torch.no_grad()
    def step(self, step: int, partials: Sequence[Message] | None = None) -> bool:
        """Update with the mean over the global batch of all shards' gradients.

        Without any gradient, as in the first steps of a delayed rule, nothing changes: not the
        parameters, not the optimizer's state.

        Args:
            step: number of the step.
            partials: those of all lanes, this one among them, in any order; they stay as they are.
                None where the shards that ended here are all that count.

        Returns:
            Whether anything was updated.
        """
        gradients, moments = self._sums.means(partials)
        if self.optimizer is None or not gradients:
            return False
        self.hooks.change(gradients)
        if self.proximal is not None:
            by_parameter = dict[Tensor, Tensor](
                (self.parameters[i], g) for i, g in gradients.items()
            )
            self.proximal.apply(by_parameter, moments)
            gradients = {i: by_parameter[self.parameters[i]] for i in gradients}
        del moments
        if self.observer is not None:
            self.observer({self.names[i]: g for i, g in gradients.items()})
        for i, parameter in enumerate(self.parameters):
            parameter.grad = gradients.get(i)
        self.hooks.accumulated()
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self._advance(self.optimizer, step)
        return True

    def clear(self) -> None:
        """Forget the shards of an unfinished step."""
        self._sums.clear()

    def _advance(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Step one optimizer on its parameters' `grad`, and free those."""
        lr = self.lr * learning_rate_factor(self.schedule, step, self.steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _divide(self, parameters: int) -> list[range]:
        """The positions of the parameters of each optimizer."""
        return [range(parameters)] if parameters else []  # parameter-free units need none

    def state_dict(self) -> dict[str, Tensor]:
        """Optimizer state by parameter name: `<parameter>.<key>`."""
        return {
            f"{self.names[i]}.{key}": value
            for optimizer, portion in zip(self._optimizers, self._portions, strict=True)
            for i in portion
            for key, value in optimizer.state.get(self.parameters[i], {}).items()
            if isinstance(value, Tensor)
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned; copies, and moves to the parameters' devices.

        What shards of an unfinished step have left is forgotten.
        """
        self.clear()
        by_index: dict[int, dict[str, Tensor]] = {}
        for full_name, value in state.items() if self._optimizers else ():
            name, key = full_name.rsplit(".", 1)
            i = self.names.index(name)
            if value.shape == self.parameters[i].shape:
                # The parameter's own layout, so that elementwise kernels take the same path.
                value = torch.empty_like(self.parameters[i], dtype=value.dtype).copy_(value)
            else:
                value = value.clone()  # AdamW counts its steps in place
            by_index.setdefault(i, {})[key] = value
        for optimizer, portion in zip(self._optimizers, self._portions, strict=True):
            own = {j: by_index[i] for j, i in enumerate(portion) if i in by_index}
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": own, "param_groups": groups})
