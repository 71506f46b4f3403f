"""The one tree in which what the shards of a step have computed is added up.

Floating-point addition is not associative, and the sum must not depend on who computed which shard.
So the tree's shape is a function of the number of shards alone, and a lane, which has only some of
the shards, adds those parts of it that lie within its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

import torch
from torch import Tensor

from learning.messages import Message, outgoing

Gradients = list[Tensor | None]
Span = tuple[int, int]
"""A part of the tree: its first shard and its number of shards."""
Parts = dict[Span, Gradients]


def halves(span: Span) -> tuple[Span, Span]:
    """The two parts that a part of several shards is the sum of.

    The left one has the largest power of two of shards that leaves some to the right: what a binary
    counter carries, and then adds up from the right, has this shape.
    """
    first, count = span
    left = 1 << ((count - 1).bit_length() - 1)
    return (first, left), (first + left, count - left)


@cache
def _siblings(shards: int) -> dict[Span, Span]:
    """The right neighbour of each left part of the tree."""
    siblings: dict[Span, Span] = {}
    ahead = [(0, shards)]
    while ahead:
        span = ahead.pop()
        if span[1] > 1:
            left, right = halves(span)
            siblings[left] = right
            ahead += [left, right]
    return siblings


def shares(shards: int, lanes: int) -> list[range]:
    """The shards of each lane: runs whose lengths differ by one at most."""
    return [range(i * shards // lanes, (i + 1) * shards // lanes) for i in range(lanes)]


def repeated(term: Tensor, count: int) -> Tensor:
    """The sum of a part of `count` shards that all have the same term."""
    if count == 1:
        return term
    (_, left), (_, right) = halves((0, count))
    return repeated(term, left) + repeated(term, right)


class GradientTree:
    """Adds what shards have computed, tensor by tensor, in the tree of a step's `shards`.

    Neighbours are added as soon as both are there, so no more than the logarithm of the number of
    shards is kept where a lane's shards are a run.
    """

    def __init__(self, shards: int = 1) -> None:
        self.shards = shards
        self._siblings = _siblings(shards)
        self._stack: list[tuple[Span, Gradients]] = []

    def add(self, shard: int, gradients: Gradients) -> None:
        """Add those of a shard; a lane does so in the order of its shards."""
        self._put((shard, 1), gradients)

    @property
    def added(self) -> int:
        """How many shards were added since the tree was empty."""
        return sum(count for (_, count), _ in self._stack)

    def _put(self, span: Span, gradients: Gradients) -> None:
        stack = self._stack
        start = stack[-1][0][0] + stack[-1][0][1] if stack else 0
        assert start <= span[0] < self.shards, f"{span} after {start} of {self.shards} shards"
        while stack and self._siblings.get(stack[-1][0]) == span:
            (first, count), left = stack.pop()
            span, gradients = (first, count + span[1]), _sum(left, gradients)
        stack.append((span, gradients))

    def parts(self) -> Parts:
        """What the shards added so far come to: the largest parts of the tree that they make up."""
        return dict(self._stack)

    def total(self) -> Gradients:
        """The sum over all shards, [] when none was added; the tree is empty afterwards."""
        stack, self._stack = self._stack, []
        if not stack:
            return []
        spans = [span for span, _ in stack]
        assert spans == [(0, self.shards)], f"{spans} are not the step's {self.shards} shards"
        return stack[0][1]

    def merge(self, lanes: Iterable[Mapping[Span, Gradients]]) -> Gradients:
        """The sum over the shards of all lanes, from the parts that each lane's tree has.

        What this tree held itself counts as one of the lanes only if it is given too; it is empty
        afterwards.
        """
        self.clear()
        parts = [part for lane in lanes for part in lane.items()]
        for span, gradients in sorted(parts, key=lambda part: part[0]):
            self._put(span, gradients)
        return self.total()

    def clear(self) -> None:
        """Forget what was added."""
        self._stack = []


class OpenTree(GradientTree):
    """The tree of as many shards as are added, wherever in a step they are: those of one lane.

    A binary counter that carries has its shape, however many shards there turn out to be.
    """

    def add(self, shard: int, gradients: Gradients) -> None:
        first, count = self.added, 1
        while self._stack and self._stack[-1][0][1] == count:
            (first, _), left = self._stack.pop()
            gradients, count = _sum(left, gradients), 2 * count
        self._stack.append(((first, count), gradients))

    def total(self) -> Gradients:
        stack, self._stack = self._stack, []
        total = stack.pop()[1] if stack else []
        while stack:
            total = _sum(stack.pop()[1], total)
        return total


def make_tree(shards: int, alone: bool) -> GradientTree:
    """The tree of a step's shards, or of those that a lane has of them."""
    return OpenTree(shards) if alone else GradientTree(shards)


def _sum(left: Gradients, right: Gradients) -> Gradients:
    return [b if a is None else a if b is None else a + b for a, b in zip(left, right, strict=True)]


def to_message(name: str, parts: Parts) -> Message:
    """Parts as named tensors: `<name>.spans` (n, 2) and `<name>.<first>.<count>.<place>`."""
    message = {f"{name}.spans": torch.tensor(list(parts), dtype=torch.int64).view(-1, 2)}
    for (first, count), gradients in parts.items():
        for place, gradient in enumerate(gradients):
            if gradient is not None:
                message[f"{name}.{first}.{count}.{place}"] = outgoing(gradient)
    return message


def from_message(name: str, message: Message, places: int, device: torch.device) -> Parts:
    """The parts that `to_message` wrote; tensors on another device are copied to this one."""
    parts: Parts = {}
    for first, count in message[f"{name}.spans"].tolist():
        found = (message.get(f"{name}.{first}.{count}.{place}") for place in range(places))
        parts[first, count] = [None if t is None else t.to(device) for t in found]
    return parts
