"""Outer steps: lanes learn apart for some steps, then agree (DiLoCo, arXiv 2311.08105).

Douillard et al. 2023. Each lane makes `every` updates with its own shards and its own optimizer,
the inner steps. Then, with theta the parameters on which all agreed last, theta_l those of lane l,
and v a velocity that begins with 0,

    delta = theta - mean of theta_l        what the lanes have learnt, as if it were a gradient
    v     = momentum v + delta
    theta = theta - lr (delta + momentum v)                           (Nesterov)

and every lane goes on from theta. Buffers have no momentum: all lanes go on from their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from learning.messages import Message, outgoing
from learning.policies.tree import GradientTree, repeated
from learning.policies.update import Updater
from learning.settings import OuterSettings


class OuterStep:
    """The outer state of one learner in one lane, which is the same in all lanes.

    Only elementwise operations that are rounded once are used, one after the other: whatever the
    layout of a tensor in memory, every lane ends with the same bits.
    """

    def __init__(
        self,
        settings: OuterSettings,
        updater: Updater,
        others: Callable[[], Sequence[Tensor]] = list,
        constrain: Callable[[], None] = lambda: None,
    ) -> None:
        """Agree on the parameters as they are.

        Args:
            settings: how often, and how far.
            updater: of the inner steps, whose parameters take the outer ones.
            others: what else must be the same in all lanes.
            constrain: brings weights back to where they belong, after a step.
        """
        self.settings, self._constrain, self._others = settings, constrain, others
        self._names, self._parameters = updater.names, updater.parameters
        self._agreed = [p.detach().clone() for p in self._parameters]
        self._velocity = [torch.zeros_like(p) for p in self._agreed]

    def due(self, step: int) -> bool:
        """Whether lanes agree after `step`."""
        return (step + 1) % self.settings.every == 0

    def partial(self) -> Message:
        """What this lane has come to, for `step` in all lanes; the tensors are only lent.

        `parameter.<i>`, and `other.<i>` for what no optimizer changes.
        """
        message = {f"parameter.{i}": outgoing(p) for i, p in enumerate(self._parameters)}
        return message | {f"other.{i}": outgoing(t) for i, t in enumerate(self._others())}

    @torch.no_grad()
    def step(self, partials: Sequence[Message]) -> None:
        """Go on from what all lanes have come to.

        Args:
            partials: of all lanes in their order, this one among them; they stay as they are, but
                for what this lane lent.
        """
        lr, momentum = self.settings.lr, self.settings.momentum
        for i, parameter in enumerate(self._parameters):
            agreed, velocity = self._agreed[i], self._velocity[i]
            delta = agreed - _mean([p[f"parameter.{i}"] for p in partials], agreed.device)
            velocity.mul_(momentum).add_(delta)
            parameter.copy_(agreed - delta.add_(velocity * momentum).mul_(lr))
        if len(partials) > 1:
            for i, tensor in enumerate(self._others()):
                tensor.copy_(_mean([p[f"other.{i}"] for p in partials], tensor.device))
        self._constrain()
        for agreed, parameter in zip(self._agreed, self._parameters, strict=True):
            agreed.copy_(parameter)

    def state_dict(self) -> dict[str, Tensor]:
        """`parameters.<name>`, on which lanes agreed last, and `velocity.<name>`."""
        named = [*zip(self._names, self._agreed, self._velocity, strict=True)]
        state = {f"parameters.{name}": agreed for name, agreed, _ in named}
        return state | {f"velocity.{name}": velocity for name, _, velocity in named}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned; copies."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])


def _mean(terms: Sequence[Tensor], device: torch.device) -> Tensor:
    """The mean over lanes, added in their tree; of what is no floating number, the first lane's.

    What is the same in all lanes keeps its bits, though the mean of equal numbers may be another
    one by rounding.
    """
    first = terms[0].to(device)
    if not (first.is_floating_point() or first.is_complex()):
        return first
    tree = GradientTree(len(terms))
    for lane, term in enumerate(terms):
        tree.add(lane, [term.to(device)])
    (total,) = tree.total()
    assert total is not None
    return torch.where(total == repeated(first, len(terms)), first, total / len(terms))


def agree(step: int, twins: Sequence[OuterStep | None]) -> None:
    """Let one learner's lanes, in this process, take the outer step if it is due after `step`."""
    there = [twin for twin in twins if twin is not None]
    if not there or not there[0].due(step):
        return
    partials = [{n: t.clone() for n, t in twin.partial().items()} for twin in there]
    for twin in there:
        twin.step(partials)
