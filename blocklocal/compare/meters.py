"""Meters for one training step: floating-point operations, tensors kept for backward, messages."""

from __future__ import annotations

import functools
import inspect
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from learning.messages import Message, Post

Learner = Any
"""A block's or a feedback module's: what has public methods that return posts."""


class FlopMeter(TorchDispatchMode):
    """Counts as `torch.utils.flop_counter.FlopCounterMode` does, by the same formulas.

    That one also follows modules with hooks on gradients, which refuse `torch.autograd.grad`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class StepMeter:
    """Follows the learners of an engine: who is at work, what it keeps, what it sends.

    Block k and feedback module k share the position k, as they share a device.

    Attributes:
        peak: by position, the most bytes kept for backward passes at one time.
        forward: bytes of messages towards later positions.
        back: bytes of messages towards earlier positions.
        beside: bytes of messages between block k and feedback module k.
    """

    def __init__(self, parameters: set[int]) -> None:
        """Follow nothing yet.

        Args:
            parameters: addresses of the storages of parameters and buffers, which are not counted.
        """
        self.peak: Counter[int] = Counter()
        self.forward = self.back = self.beside = 0
        self._parameters = parameters
        self._live: Counter[int] = Counter()
        self._holders: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._at: int | None = None

    def restart(self) -> None:
        """Count anew; what is kept from before stays counted as kept."""
        self.peak = Counter(self._live)
        self.forward = self.back = self.beside = 0

    def follow(self, name: str, learner: Learner) -> None:
        """Watch the public methods of a learner called `name`."""
        for method_name, _ in inspect.getmembers(type(learner), inspect.isfunction):
            if not method_name.startswith("_"):
                method = getattr(learner, method_name)
                setattr(learner, method_name, self._watched(position(name), method))

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is kept for backward passes inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor):
            yield

    def _watched(self, at: int, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def watched(*arguments: Any, **options: Any) -> Any:
            if self._at is not None:  # called by another method of the same learner
                return method(*arguments, **options)
            self._at = at
            try:
                result = method(*arguments, **options)
            finally:
                self._at = None
            for post in result if isinstance(result, list) else ():
                if isinstance(post, Post):
                    self._sent(at, post)
            return result

        return watched

    def _sent(self, at: int, post: Post) -> None:
        to, size = position(post.to), message_bytes(post.message)
        if to > at:
            self.forward += size
        elif to < at:
            self.back += size
        else:
            self.beside += size

    def _keep(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        at = None if not address or address in self._parameters else self._at
        # Not `tensor` itself: an output that its own graph node holds would never be freed.
        return _Kept(self, at, tensor.detach(), address, storage.nbytes())

    def add(self, at: int, address: int, size: int) -> None:
        """One more graph node at a position keeps a storage."""
        self._holders[at, address] += 1
        if self._holders[at, address] == 1:
            self._live[at] += size
            self.peak[at] = max(self.peak[at], self._live[at])

    def remove(self, at: int, address: int, size: int) -> None:
        """One graph node fewer keeps a storage."""
        self._holders[at, address] -= 1
        if not self._holders[at, address]:
            del self._holders[at, address]
            self._live[at] -= size


class _Kept:
    """A tensor kept for backward, counted until the graph lets go of it.

    It keeps the storage alive, so that its address names no other one meanwhile.
    """

    def __init__(
        self, meter: StepMeter, at: int | None, tensor: Tensor, address: int, size: int
    ) -> None:
        self.tensor, self._meter, self._at, self._of = tensor, meter, at, (address, size)
        if at is not None:
            meter.add(at, *self._of)

    def __del__(self) -> None:
        if self._at is not None:
            self._meter.remove(self._at, *self._of)


def position(name: str) -> int:
    """K of `block<k>` and `feedback<k>`."""
    match = re.search(r"\d+$", name)
    assert match, f"a learner without a number: {name}"
    return int(match[0])


def message_bytes(message: Message) -> int:
    """Bytes of a message's tensors."""
    return sum(tensor.nbytes for tensor in message.values())
