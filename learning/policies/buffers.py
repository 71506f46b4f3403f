"""Buffers, such as the running statistics of batch normalisation, where a step has several shards.

Updated shard after shard, the buffers of a shard would depend on the shards before it, and so on
the lane. So every shard starts from the buffers at the beginning of the step, and the update brings
together what the shards made of them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from learning.messages import Message
from learning.policies.tree import Parts, from_message, make_tree, repeated, to_message


class ShardBuffers:
    """The buffers of a module over the shards of a step.

    At the update a floating-point buffer becomes the mean of what the shards made of it, added in
    their tree; an integer one its value plus the increments of all shards; a boolean one is an
    integer of which the sign is kept. With one shard a step, buffers are left to the module.

    Where a lane learns alone, all this goes for the shards that it has.

    A module lists in `fixed_buffers` the names of those that its forward pass never changes. That
    saves copying them, and no more.

    Attributes:
        name: of these buffers in partial sums.
    """

    def __init__(
        self, name: str, module: nn.Module | None, shards: int, *, alone: bool = False
    ) -> None:
        self.name, self._shards, self._alone = name, shards, alone
        self._tree = make_tree(shards, alone)
        places: dict[Tensor, list[tuple[nn.Module, str]]] = {}
        for owner in module.modules() if module is not None and shards > 1 else ():
            fixed = getattr(owner, "fixed_buffers", ())
            for key, buffer in owner._buffers.items():
                if buffer is not None and key not in fixed:
                    places.setdefault(buffer, []).append((owner, key))
        self._places = list(places.values())  # a shared buffer has several

    @contextlib.contextmanager
    def shard(self, shard: int) -> Iterator[None]:
        """A context for what a shard does with the module in training mode."""
        if not self._places:
            yield
            return
        # The shard gets tensors of its own: its graph may hold them, so they are not written to
        # again, and those of the beginning of the step are never written to before its end.
        start = self.tensors()
        self._set([buffer.clone() for buffer in start])
        try:
            yield
        finally:
            end = self.tensors()
            self._set(start)
        pairs = zip(start, end, strict=True)
        self._tree.add(shard, [_made(before, after.detach()) for before, after in pairs])

    def partial(self) -> Message:
        """What the shards so far made of the buffers; what they left as it was is left out."""
        if not self._places:
            return {}
        start = self.tensors()
        changed = {
            (first, count): [
                None if t is None or _unchanged(b, t, count) else t
                for b, t in zip(start, made, strict=True)
            ]
            for (first, count), made in self._tree.parts().items()
        }
        return to_message(self.name, changed)

    @torch.no_grad()
    def update(self, partials: Sequence[Message] | None = None) -> None:
        """Set the buffers to what all shards of the step made of them.

        Args:
            partials: of all lanes, this one among them; None where this is the only one.
        """
        if not self._places:
            return
        start, shards = self.tensors(), self._tree.added if self._alone else self._shards
        if partials is None:
            sums = self._tree.total()
        else:
            sums = self._tree.merge(self._parts(start, partial) for partial in partials)
        for buffer, total in zip(start, sums, strict=False):  # no sums where no shard ran
            if total is None:
                continue
            if buffer.dtype == torch.bool:
                buffer.copy_(buffer.long() + total > 0)
            elif _is_whole(buffer):
                buffer.add_(total)
            else:
                # The mean of equal numbers may be another one, by rounding.
                same = total == repeated(buffer, shards)
                buffer.copy_(torch.where(same, buffer, total / shards))

    def clear(self) -> None:
        """Forget the shards of an unfinished step."""
        self._tree.clear()

    def tensors(self) -> list[Tensor]:
        """The buffers as they are, in a fixed order; none with one shard a step."""
        buffers: list[Tensor] = []
        for (owner, key), *_ in self._places:
            buffer = owner._buffers[key]
            assert buffer is not None
            buffers.append(buffer)
        return buffers

    def _parts(self, start: list[Tensor], partial: Message) -> Parts:
        parts = from_message(self.name, partial, len(start), start[0].device)
        return {
            span: [
                repeated(b, span[1]) if t is None and not _is_whole(b) else t
                for b, t in zip(start, made, strict=True)
            ]
            for span, made in parts.items()
        }

    def _set(self, buffers: list[Tensor]) -> None:
        for places, buffer in zip(self._places, buffers, strict=True):
            for owner, key in places:
                owner._buffers[key] = buffer


def _is_whole(buffer: Tensor) -> bool:
    return not (buffer.is_floating_point() or buffer.is_complex())


def _made(before: Tensor, after: Tensor) -> Tensor:
    """What enters the tree: a value, or an increment."""
    if before.dtype == torch.bool:
        return after.long() - before.long()
    return after - before if _is_whole(before) else after


def _unchanged(start: Tensor, made: Tensor, count: int) -> bool:
    if _is_whole(start):
        return not made.any()
    return torch.equal(made, repeated(start, count))
