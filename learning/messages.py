"""Messages: named tensors that cross a block boundary, detached and contiguous, and their keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

Message = dict[str, Tensor]
"""Named tensors.

Forward (`x`): `x` (b, ...), labels `y` (b, ...), and with some rules the gradient `d` of the
sender's loss at `x`, or the network's input `image`. Gradient (`g`): `gradient` (b, ...), of the
per-sample sum of a loss. Feedback (`table`): natural parameters `b` (C, U, P), label bias `c` (C,);
its chain (`raw`) carries `raw` (C, U, P). `readout`: `a` (b, U, P) and `y`. `weights`: the state of
one unit. Floating tensors of `x` and `g` are written by the run's codec; `x.order` and the like say
how the dimensions lie in memory where that is not their own order.
"""


class Key(NamedTuple):
    """Names one message at its receiver: what it is, of which step, shard and origin."""

    what: str
    step: int
    shard: int = 0
    origin: int = 0
    split: str = ""


class Post(NamedTuple):
    """A message on its way.

    Attributes:
        to: name of the receiving learner.
        until: the step in which it is taken, where that is a later one than it is sent in.
    """

    to: str
    key: Key
    message: Message
    until: int | None = None


def block_name(k: int) -> str:
    """The name of block k's learner."""
    return f"block{k}"


def feedback_name(k: int) -> str:
    """The name of feedback module k's learner."""
    return f"feedback{k}"


def outgoing(tensor: Tensor) -> Tensor:
    """Detach for sending, in one layout, whatever transport hands it over.

    The detour over one dimension also fixes the strides of dimensions of size one, which torch
    counts as contiguous with any stride and NumPy writes anew.
    """
    return tensor.detach().contiguous().view(-1).view(tensor.shape)


_ORDER = "order"


def in_memory_order(name: str, tensor: Tensor) -> Message:
    """A tensor for sending whose dimensions keep their order in memory, as `<name>.order`.

    Kernels may round differently in another layout, such as that of images with channels last.
    The order is the shape of a tensor without numbers: reading one would wait for a GPU. What is
    in memory neither in one piece nor once is sent in the order of its dimensions.
    """
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), d))
    if tensor.is_contiguous() or not (dense := tensor.permute(order)).is_contiguous():
        return {name: outgoing(tensor)}
    return {name: outgoing(dense), f"{name}.{_ORDER}": torch.empty(0, *order)}


def from_memory_order(message: Message, name: str) -> Tensor:
    """The tensor that `in_memory_order` was given, in its layout."""
    order = message.get(f"{name}.{_ORDER}")
    if order is None:
        return message[name]
    places = order.shape[1:]
    return message[name].permute([places.index(d) for d in range(len(places))])


def message_bytes(message: Message) -> int:
    """Bytes of a message's tensors."""
    return sum(tensor.nbytes for tensor in message.values())


_EMPTY = "-"  # no tensor is called so: stands for a message without tensors


class InFlight:
    """Posts that are taken in a later step than they are sent in: a snapshot must hold them."""

    def __init__(self) -> None:
        self._posts: list[Post] = []

    def keep(self, posts: Iterable[Post], step: int) -> None:
        """Remember those of the posts sent in `step` that wait for a later one."""
        self._posts = [p for p in self._posts if p.until is not None and p.until > step]
        self._posts += [p for p in posts if p.until is not None and p.until > step]

    def from_step(self, step: int) -> list[Post]:
        """What is taken in `step` or later."""
        return [p for p in self._posts if p.until is not None and p.until >= step]

    def state_dict(self) -> dict[str, Tensor]:
        """All posts by `<what>.<step>.<shard>.<origin>.<until>.<to>.<name>`."""
        empty: Message = {_EMPTY: torch.empty(0)}  # of a unit without weights, say
        return {
            f"{key.what}.{key.step}.{key.shard}.{key.origin}.{until}.{to}.{name}": tensor
            for to, key, message, until in self._posts
            for name, tensor in (message or empty).items()
        }

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Load what `state_dict` returned (tensors are copied)."""
        posts: dict[tuple[str, Key, int], Message] = {}
        for full_name, tensor in state.items():
            what, step, shard, origin, until, to, name = full_name.split(".", 6)
            key = Key(what, int(step), int(shard), int(origin))
            message = posts.setdefault((to, key, int(until)), {})
            if name != _EMPTY:
                message[name] = tensor.to(device, copy=True)
        self._posts = [Post(to, key, m, until) for (to, key, until), m in posts.items()]
