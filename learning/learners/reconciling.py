"""Blocks that reconcile their gradient at the input with the one of the block before (SGR).

Yang et al. 2024, arXiv 2406.05222; form, schedule and norm are derived in docs/rules/reconcile.md.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from learning.credit import Reconcile
from learning.errors import NonFiniteLossError
from learning.learners.block import BlockLearner
from learning.learners.pending import Pending
from learning.messages import Message, Post
from learning.objectives.base import Assessment


@dataclass
class _Formed:
    """The loss of a shard and, from block 2 on, its gradient at the input as a function."""

    assessment: Assessment
    at_input: Tensor | None


class ReconcilingBlock(BlockLearner):
    """Minimises L_k + weight * R_k, R_k the distance between two gradients at the boundary below.

    e_k = dL_k/dx_{k-1} keeps its graph; d_{k-1} = dL_{k-1}/dx_{k-1} is a constant that came with
    the activation. Both are of per-sample sums, so R_k is a sum over samples too. The loss is
    formed at the end of the forward pass, because its gradient d_k goes on with the activation.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        assert isinstance(self.credit, Reconcile)
        self.reconcile = self.credit
        self._formed: dict[tuple[int, int], _Formed] = {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._formed.clear()

    def _differentiates_input(self, message: Message) -> bool:
        return "d" in message

    def _run(self, step: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with self._twice_differentiable():
            return super()._run(step, x)

    def _send_along(self, step: int, shard: int, pending: Pending) -> Message:
        # A first block with nothing to learn has an output without a graph.
        h = pending.h if pending.h.requires_grad else pending.h.detach().requires_grad_()
        with self._twice_differentiable():
            assessment = self._assessment(step, shard, h, pending, None)
        weighs = "d" in pending.message and self._weight(step) > 0
        loss, x = assessment.loss, pending.x
        at_input = None
        if not weighs:
            (at_output,) = torch.autograd.grad(loss, h, retain_graph=True)
        elif self.reconcile.frozen_signal:
            (at_output,) = torch.autograd.grad(loss, h, retain_graph=True)
            (at_input,) = torch.autograd.grad(h, x, at_output, create_graph=True)
        else:
            at_output, at_input = torch.autograd.grad(loss, (h, x), create_graph=True)
        self._formed[step, shard] = _Formed(assessment, at_input)
        return {} if self.index == self.last else self.codec.encode("d", at_output)

    def assess(self, step: int, shard: int, feedback: Message | None = None) -> list[Post]:
        pending = self._pending[step, shard]
        formed = self._formed.pop((step, shard))
        total = formed.assessment.loss
        if formed.at_input is not None:
            d = self.codec.decode(pending.message, "d", self.numerics.dtype)
            d = self.numerics.arrange(d)
            distance = gradient_distance(formed.at_input, d, self.reconcile.scale_free)
            total = total + self._weight(step) * distance
            if not torch.isfinite(total):
                raise NonFiniteLossError(self.index, step, total.item())
        parameters = [*pending.parameters, *self.auxiliary_parameters]
        if parameters and total.requires_grad:
            self.updater.add(torch.autograd.grad(total, parameters, allow_unused=True))
        self._release(step, shard)
        return []

    def check_penalty(self, step: int, shard: int) -> None:
        """Check that the penalty of a shard, not yet assessed, can be differentiated.

        Raises:
            RuntimeError: where autograd would leave a part of its gradient out without a word.
        """
        at_input = self._formed[step, shard].at_input
        if at_input is not None and _is_cut(at_input):
            raise RuntimeError("a custom autograd function is differentiable only once")

    def _weight(self, step: int) -> float:
        return self.reconcile.weight_at(step, self.settings.steps)

    def _twice_differentiable(self) -> contextlib.AbstractContextManager[object]:
        # The fused kernels of scaled dot product attention have no second derivative.
        return sdpa_kernel(SDPBackend.MATH)


def _is_cut(gradient: Tensor) -> bool:
    """Whether the way from a gradient to parameters ends at a `once_differentiable` function.

    That leaves a node which raises when run; autograd does not run it for parameters behind it,
    because the graph ends there.
    """
    found, ahead = set(), [gradient.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in found:
            continue
        if node.name().endswith("::Error"):
            return True
        found.add(node)
        ahead += [after for after, _ in node.next_functions]
    return False


def gradient_distance(e: Tensor, d: Tensor, scale_free: bool) -> Tensor:
    """Sum over samples of the squared distance of two gradients (b, ...), a scalar.

    Scale-free: of their directions, 2 (1 - cos). A gradient of zero has no direction: a sample
    where one vanishes counts nothing.
    """
    e, d = (g.flatten(1) if g.dtype == torch.float64 else g.flatten(1).float() for g in (e, d))
    if not scale_free:
        return (e - d).square().sum()
    e_square, d_square = e.square().sum(1), d.square().sum(1)
    there = (e_square > 0) & (d_square > 0)
    # `where` inside the roots keeps the gradient of the vanishing samples finite. Each has a root
    # of its own: in float32 the product of the squares vanishes for samples that are well learned.
    one = torch.ones_like(e_square)
    norms = torch.where(there, e_square, one).sqrt() * torch.where(there, d_square, one).sqrt()
    return (2 * (1 - (e * d).sum(1) / norms) * there).sum()
