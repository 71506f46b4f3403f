"""Blocks whose gradients come some steps after the forward pass (DDG and features replay).

Decoupled parallel backpropagation with delayed gradients: Huo et al. 2018, arXiv 1804.10574.
Features replay: Huo, Gu & Huang 2018, NeurIPS.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from learning.credit import Delayed
from learning.learners.base import partition_state
from learning.learners.block import BlockLearner
from learning.learners.pending import Pending
from learning.messages import Message, Post


class DelayedBlock(BlockLearner):
    """Keeps what the backward pass of an old step needs while new ones go forward.

    Backward through a graph that was made before an optimizer step would mix old activations with
    new weights (torch refuses it). So either the graph is made on copies of the weights, or only
    the inputs are kept and the graph is made when the gradient comes, with the weights of that day.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.credit, Delayed)
        self.stash, self.compensation = self.credit.stash, self.credit.compensation
        named = [(n, p) for n, p in self.chain.named_parameters() if p.requires_grad]
        self._names = [n for n, _ in named]
        self._stashed: dict[int, list[Tensor]] = {}
        self._again = False  # whether what runs forward did so before, and is counted already

    def _run(self, step: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        aside = self._spare_buffers() if self._again else {}
        if self.stash == "inputs":
            with torch.no_grad():
                return functional_call(self.chain, aside, x), []
        if step not in self._stashed:
            self._stashed[step] = [
                p.detach().clone().requires_grad_() for p in self.block_parameters
            ]
        stashed = self._stashed[step]
        tensors = aside | dict(zip(self._names, stashed, strict=True))
        return functional_call(self.chain, tensors, x), stashed

    def _counted(self, shard: int) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._again else super()._counted(shard)

    def _send_along(self, step: int, shard: int, pending: Pending) -> Message:
        if self.stash == "inputs":
            pending.h = pending.h.new_empty(0)  # to be made again; its type is all that is needed
        return super()._send_along(step, shard, pending)

    def receive(self, step: int, shard: int, origin: int, message: Message) -> list[Post]:
        if self.stash == "inputs":
            self._replay(step, shard)
        return super().receive(step, shard, origin, message)

    def _replay(self, step: int, shard: int) -> None:
        """Run a kept input forward again, with today's weights and the dropout of its day."""
        pending = self._pending[step, shard]
        with (
            self._seeded("forward", step, shard),
            self.numerics.autocast(),
            self.updater.recording() as moments,
        ):
            pending.h = functional_call(self.chain, self._spare_buffers(), pending.x)
        pending.moments = moments
        pending.parameters = list(self.block_parameters)

    def _backward(
        self,
        step: int,
        pending: Pending,
        gradient: Tensor,
        parameters: list[Tensor],
        inputs: list[Tensor],
        first: int,
        weight: float,
    ) -> Sequence[Tensor | None]:
        if not (self.compensation and parameters):
            return super()._backward(step, pending, gradient, parameters, inputs, first, weight)
        grads = torch.autograd.grad(pending.h, [*parameters, *inputs], gradient, allow_unused=True)
        self.updater.add(self._compensated(step, grads[: len(parameters)]), first, weight)
        return grads[len(parameters) :]

    def _compensated(self, step: int, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """First-order Taylor correction, g + c g*g*(now - then) (Zheng et al. 2017, DC-ASGD).

        The outer product of the mean gradient stands for the Hessian of the mean loss, hence the
        division by the batch: `grads` are sums over samples.
        """
        batch = self.settings.batch
        return [
            None
            if g is None
            else g + self.compensation / batch * g * g * (now.detach() - then.detach())
            for g, now, then in zip(grads, self.block_parameters, self._stashed[step], strict=True)
        ]

    def _release(self, step: int, shard: int) -> None:
        super()._release(step, shard)
        if shard + 1 == self.settings.shards:
            self._stashed.pop(step, None)

    def _spare_buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers, for running a batch again: it must not enter statistics twice.

        Putting the old values back afterwards would not do: the graph may hold the buffers, and
        backward refuses a graph whose tensors were written to.
        """
        return {name: buffer.clone() for name, buffer in self.chain.named_buffers()}

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        for (step, shard), pending in self._pending.items():
            for name, tensor in pending.message.items():
                state[f"pending.{step}.{shard}.{name}"] = tensor
        for step, stashed in self._stashed.items():
            for name, tensor in zip(self._names, stashed, strict=True):
                state[f"stashed.{step}.{self.chain.original_name(name)}"] = tensor.detach()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        parts = partition_state(state)
        self._stashed.clear()
        originals = [self.chain.original_name(name) for name in self._names]
        for step in {int(full_name.split(".", 1)[0]) for full_name in parts["stashed"]}:
            copies = (parts["stashed"][f"{step}.{n}"] for n in originals)
            self._stashed[step] = [
                torch.empty_like(p, requires_grad=False)
                .copy_(c)
                .requires_grad_()  # in the parameter's own layout
                for p, c in zip(self.block_parameters, copies, strict=True)
            ]
        shards: dict[tuple[int, int], Message] = {}
        for full_name, tensor in parts["pending"].items():
            step, shard, name = full_name.split(".", 2)
            copied = tensor.to(self.device, copy=True)
            shards.setdefault((int(step), int(shard)), {})[name] = copied
        self._again = True
        for (step, shard), message in sorted(shards.items(), key=lambda item: item[0]):
            self.forward(step, shard, message)  # makes the graphs again
        self._again = False
