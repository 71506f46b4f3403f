"""Meters for one training step: floating-point operations, tensors kept for backward, messages."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from learning.messages import Post, message_bytes
from orchestrator.memory import KeptMeter

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


class StepMeter(KeptMeter):
    """Follows the learners of an engine: who is at work, what it keeps, what it sends.

    Block k and feedback module k share the position k, as they share a device.

    Attributes:
        peak: by position, the most bytes kept for backward passes at one time.
        forward: bytes of messages towards later positions.
        back: bytes of messages towards earlier positions.
        beside: bytes of messages between block k and feedback module k.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        super().__init__(excluded)
        self.forward = self.back = self.beside = 0

    def restart(self) -> None:
        """Count anew; what is kept from before stays counted as kept."""
        super().restart()
        self.forward = self.back = self.beside = 0

    def follow(self, name: str, learner: Learner) -> None:
        """Watch the public methods of a learner called `name`."""
        for method_name, _ in inspect.getmembers(type(learner), inspect.isfunction):
            if not method_name.startswith("_"):
                method = getattr(learner, method_name)
                setattr(learner, method_name, self._watched(position(name), method))

    def _watched(self, at: int, method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def watched(*arguments: Any, **options: Any) -> Any:
            if self._at is not None:  # called by another method of the same learner
                return method(*arguments, **options)
            with self.at(at):
                result = method(*arguments, **options)
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


def position(name: str) -> int:
    """K of `block<k>` and `feedback<k>`."""
    match = re.search(r"\d+$", name)
    assert match, f"a learner without a number: {name}"
    return int(match[0])
