"""Updates fused into the backward pass (Jiang et al. 2021, arXiv 2104.00237, "backward fusion").

A parameter is stepped the moment its gradient is complete, and the gradient is freed at once: the
gradients of a block are never in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learning.messages import Message
from learning.numerics import backward
from learning.policies.tree import Gradients
from learning.policies.update import Updater


class FusedUpdater(Updater):
    """An updater that steps each parameter inside `backward`; `step` only ends the step.

    Its bits are those of `Updater`. It can be right only where one gradient, of one shard and one
    loss, makes a parameter's update: `learning.policies.choice.check_update` refuses the rest. That
    gradient must be the last to go through its graph, because the graph's weights change under it;
    several backward passes in a step are fine when they are for different parameters.

    Its observer is called once a parameter, with that one gradient.
    """

    _updated = False  # whether any parameter was stepped since the last `step`

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
        if not parameters:
            return super().backward(
                output, gradient, (), inputs, step=step, retain_graph=retain_graph
            )
        assert not retain_graph, "no gradient can follow through weights that were stepped"
        assert all(x.is_leaf for x in inputs), "only a leaf keeps its gradient"
        if not output.requires_grad:
            return [None] * len(inputs)
        leaves = [*parameters, *inputs]
        for leaf in leaves:
            leaf.grad = None  # autograd would add to what a user left there
        handles = [
            leaf.register_post_accumulate_grad_hook(self._hook(i, step, weight))
            for i, leaf in enumerate(parameters, start=start)
        ]
        try:
            backward(output, gradient, inputs=leaves)
        finally:
            for handle in handles:
                handle.remove()
        gradients = [x.grad for x in inputs]
        for x in inputs:
            x.grad = None
        return gradients

    def _hook(self, i: int, step: int, weight: float):
        parameter = self.parameters[i]

        @torch.no_grad()
        def complete(leaf: Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            assert gradient is not None
            if weight != 1.0:
                gradient = gradient * weight
            # Not in place: it may share memory with a gradient that is still to come.
            parameter.grad = gradient / self.batch
            if self.observer is not None:
                self.observer({self.names[i]: parameter.grad})
            self._advance(self._optimizers[i], step)
            self._updated = True

        return complete

    def add(self, gradients: Sequence[Tensor | None], start: int = 0, weight: float = 1.0) -> None:
        assert all(g is None for g in gradients), "a fused update takes gradients by `backward`"

    def end_shard(self, shard: int = 0, moments: Sequence[Tensor | None] | None = None) -> None:
        """Nothing is left to add up."""

    def partial(self) -> Message:
        raise AssertionError("a fused update is over before lanes could share it")

    def step(self, step: int, partials: Sequence[Message] | None = None) -> bool:
        """Nothing is left to do: `backward` updated each parameter."""
        assert partials is None
        updated, self._updated = self._updated, False
        return updated

    def _divide(self, parameters: int) -> list[range]:
        return [range(i, i + 1) for i in range(parameters)]
