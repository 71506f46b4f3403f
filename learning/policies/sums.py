"""What the shards of a step come to: their gradients, added in one tree, as means over samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learning.messages import Message
from learning.policies.tree import Gradients, from_message, make_tree, to_message


class ShardSums:
    """Adds the gradients of some parameters, and moments that ride with them, shard by shard.

    Where lanes share the shards of a step, each tells the others its `partial`, and all end with
    the same `means`. A lane that learns alone ends with those over its own shards.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        *,
        moments: int = 0,
        batch: int,
        shards: int = 1,
        alone: bool = False,
    ) -> None:
        """Begin with no shard.

        Args:
            parameters: whose gradients are added.
            moments: how many tensors ride behind the gradients.
            batch: samples of a step, over all shards.
            shards: of a step.
            alone: whether the means are those over the shards that end here, however many.
        """
        self._parameters, self._moments = parameters, moments
        self._batch, self._shards, self._alone = batch, shards, alone
        self._tree = make_tree(shards, alone)
        self._shard: Gradients = [None] * len(parameters)
        self._lent = False  # whether somebody else may hold gradients of this step

    def enter(self, gradients: Sequence[Tensor | None], start: int, weight: float) -> None:
        """Add gradients of `parameters[start:]`, times a weight, to the current shard's."""
        for i, g in enumerate(gradients, start=start):
            if g is not None:
                g = g if weight == 1.0 else g * weight
                held = self._shard[i]
                self._shard[i] = g if held is None else held + g

    def lend(self) -> None:
        """Note that somebody else holds gradients of this step, which must stay as they are."""
        self._lent = True

    def end_shard(self, shard: int, moments: Sequence[Tensor | None] | None) -> None:
        """Close the current shard: its gradients enter the tree, and moments behind them."""
        if moments is None:
            moments = [None] * self._moments
        self._tree.add(shard, [*self._shard, *moments])
        self._shard = [None] * len(self._parameters)

    def partial(self) -> Message:
        """What the shards so far come to, for `means` in the other lanes; nothing is copied.

        `gradients.spans` says which parts of the tree these are, `gradients.<first>.<count>.<i>` is
        the sum of shards first..first+count-1 for parameter i, or for a moment behind those.
        """
        self._lent = True
        return to_message("gradients", self._tree.parts())

    def means(self, partials: Sequence[Message] | None) -> tuple[dict[int, Tensor], Gradients]:
        """End the step: the mean gradients over its samples, and the sums of the moments.

        Args:
            partials: those of all lanes, this one among them, in any order; they stay as they are.
                None where this one's shards are all that count.

        Returns:
            Gradients by position, of those parameters that have one; what it gives is the caller's.
        """
        samples = self._batch
        if self._alone:
            samples = self._batch * self._tree.added // self._shards
        sums, lent = self._sums(partials), self._lent
        self._lent = False
        gradients = {
            i: _mean(self._parameters[i], g, samples, lent)
            for i, g in enumerate(sums[: len(self._parameters)])
            if g is not None
        }
        return gradients, sums[len(self._parameters) :]

    def _sums(self, partials: Sequence[Message] | None) -> Gradients:
        if partials is None:
            return self._tree.total()
        if not self._parameters:
            self.clear()
            return []
        places, device = len(self._parameters) + self._moments, self._parameters[0].device
        self._lent = True
        return self._tree.merge(
            from_message("gradients", partial, places, device) for partial in partials
        )

    def clear(self) -> None:
        """Forget the shards of an unfinished step."""
        self._tree.clear()
        self._shard = [None] * len(self._parameters)
        self._lent = False


def _mean(parameter: Tensor, total: Tensor, samples: int, lent: bool) -> Tensor:
    """Divide by the samples, in place where the sum is nobody else's.

    In the parameter's layout, which messages do not keep: a norm adds up in the order of memory.
    """
    if lent or not _laid_out_alike(total, parameter):
        return torch.div(total, samples, out=torch.empty_like(parameter))
    return total.div_(samples)


def _laid_out_alike(tensor: Tensor, other: Tensor) -> bool:
    strides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return tensor.stride() == other.stride() or all(n == 1 or a == b for n, a, b in strides)


def apart(gradients: Gradients, others: Gradients) -> Gradients:
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
