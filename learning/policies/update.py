"""Updates: shard gradients added in one fixed tree, clipped, and handed to the optimizer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from learning.errors import UserError
from learning.messages import Message
from learning.numerics import backward
from learning.policies.optimizers import SGD, AdamW
from learning.policies.proximal import ProximalPreconditioner
from learning.policies.schedules import learning_rate_factor
from learning.policies.tree import Gradients, GradientTree, from_message, to_message
from learning.settings import (
    AdamWSettings,
    OptimizerSettings,
    ScheduleSettings,
)

Observer = Callable[[dict[str, Tensor]], None]
"""Sees the gradients that the optimizer gets, by parameter name: means over the global batch, with
the weights of their losses, preconditioned, before clipping. They are only lent: the update changes
them in place."""


def _apart(gradients: Gradients, others: Gradients) -> Gradients:
    """Copy what shares memory with one before it or with `others`: `step` changes gradients.

    Autograd hands over tensors that nobody else holds, but two of them may be views of one.
    """
    seen = {g.untyped_storage().data_ptr() for g in others if g is not None}
    apart: Gradients = []
    for g in gradients:
        if g is not None:
            address = g.untyped_storage().data_ptr()
            g = g.clone() if address in seen else g
            seen.add(address)
        apart.append(g)
    return apart


class Updater:
    """The optimizer of one learner: its parameters by name, schedule, clipping, shard sums.

    An update has two phases: shards end one by one, and `step` adds them up. Where lanes share the
    shards of a step, each tells the others its `partial`, and each takes the step with those of
    all: the same additions, so the same bits in every lane as in a single one.

    Attributes:
        observer: called with each update's gradients, for diagnostics.
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
        proximal: ProximalPreconditioner | None = None,
    ) -> None:
        named = [(n, p) for n, p in parameters if p.requires_grad]
        self.names = [n for n, _ in named]
        self.parameters = [p for _, p in named]
        self.lr = _block_lr(optimizer.lr, index)
        self.clip = optimizer.clip
        self.schedule, self.steps, self.batch = schedule, steps, batch
        self.proximal = proximal
        self.observer: Observer | None = None
        self._portions = self._divide(len(named))
        self._optimizers = [
            _make_optimizer([self.parameters[i] for i in portion], optimizer, self.lr)
            for portion in self._portions
        ]
        self._tree = GradientTree(shards)
        self._shard: Gradients = [None] * len(self.parameters)
        self._lent = False  # whether somebody else may hold gradients of this step

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
        self._enter(_apart(own, [gradient, *others]), start, weight)
        return others

    def add(self, gradients: Sequence[Tensor | None], start: int = 0, weight: float = 1.0) -> None:
        """Add gradients of `parameters[start:]` to the current shard's; they stay as they are."""
        self._lent = True
        self._enter(gradients, start, weight)

    def _enter(self, gradients: Sequence[Tensor | None], start: int, weight: float) -> None:
        for i, g in enumerate(gradients, start=start):
            if g is not None:
                g = g if weight == 1.0 else g * weight
                held = self._shard[i]
                self._shard[i] = g if held is None else held + g

    def end_shard(self, shard: int = 0, moments: Sequence[Tensor | None] | None = None) -> None:
        """Close the current shard: its gradients enter the tree. Shards end in their order.

        Args:
            shard: its number in the step.
            moments: what `recording` gave in the shard's forward pass. They ride in the same tree,
                behind the gradients, so that they too are added in a fixed order.
        """
        if moments is None:
            moments = [None] * self._moments
        self._tree.add(shard, [*self._shard, *moments])
        self._shard = [None] * len(self.parameters)

    @property
    def _moments(self) -> int:
        return len(self.proximal.layers) if self.proximal else 0

    def partial(self) -> Message:
        """What the shards that ended here come to, for the other lanes' `step`; nothing is copied.

        `gradients.spans` says which parts of the tree these are, `gradients.<first>.<count>.<i>` is
        the sum of shards first..first+count-1 for parameter i, or for a moment behind those.
        """
        self._lent = True
        return to_message("gradients", self._tree.parts())

    @torch.no_grad()
    def step(self, step: int, partials: Sequence[Message] | None = None) -> bool:
        """Update with the mean over the global batch of all shards' gradients.

        Without any gradient, as in the first steps of a delayed rule, nothing changes: not the
        parameters, not the optimizer's state.

        Args:
            step: number of the step.
            partials: those of all lanes, this one among them, in any order; they stay as they are.
                None where all shards ended here.

        Returns:
            Whether anything was updated.
        """
        sums, lent = self._sums(partials), self._lent
        self._lent = False
        gradients = {
            i: self._mean(self.parameters[i], g, lent)
            for i, g in enumerate(sums[: len(self.parameters)])
            if g is not None
        }
        if self.optimizer is None or not gradients:
            return False
        if self.proximal is not None:
            by_parameter = dict[Tensor, Tensor](
                (self.parameters[i], g) for i, g in gradients.items()
            )
            self.proximal.apply(by_parameter, sums[len(self.parameters) :])
            gradients = {i: by_parameter[self.parameters[i]] for i in gradients}
        del sums
        if self.observer is not None:
            self.observer({self.names[i]: g for i, g in gradients.items()})
        for i, parameter in enumerate(self.parameters):
            parameter.grad = gradients.get(i)
        if self.clip is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self._advance(self.optimizer, step)
        return True

    def _sums(self, partials: Sequence[Message] | None) -> Gradients:
        if partials is None:
            return self._tree.total()
        if not self.parameters:
            self.clear()
            return []
        places, device = len(self.parameters) + self._moments, self.parameters[0].device
        self._lent = True
        return self._tree.merge(
            from_message("gradients", partial, places, device) for partial in partials
        )

    def _mean(self, parameter: Tensor, total: Tensor, lent: bool) -> Tensor:
        """Divide by the batch, in place where the sum is nobody else's.

        In the parameter's layout, which messages do not keep: a norm adds up in the order of
        memory.
        """
        if lent or not _laid_out_alike(total, parameter):
            return torch.div(total, self.batch, out=torch.empty_like(parameter))
        return total.div_(self.batch)

    def clear(self) -> None:
        """Forget the shards of an unfinished step."""
        self._tree.clear()
        self._shard = [None] * len(self.parameters)
        self._lent = False

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


def _laid_out_alike(tensor: Tensor, other: Tensor) -> bool:
    strides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return tensor.stride() == other.stride() or all(n == 1 or a == b for n, a, b in strides)


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
) -> torch.optim.Optimizer:
    if isinstance(settings, AdamWSettings):
        return AdamW(parameters, lr, settings.betas, settings.eps, settings.weight_decay)
    return SGD(
        parameters,
        lr,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=settings.nesterov,
    )
