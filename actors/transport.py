"""Channels: how a message gets from one actor to another, bounded by a window.

This file has what all channels promise, and those through Ray's object store; `actors/direct.py`
has those over sockets.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any, Protocol

import ray
from ray.exceptions import RayTaskError

from actors import wire
from actors.mailbox import StoppedError
from learning.messages import Key, Message


class Channel(Protocol):
    """The sending end of a one-way connection between two actors."""

    blocked_ns: int
    """Time spent in `send` waiting for room, so far."""
    is_blocked: bool
    """Whether `send` waits for room now."""

    def send(self, key: Key, message: Message) -> int:
        """Send; blocks while the window is full. Returns the bytes sent."""
        ...

    def leave(self) -> None:
        """Say that nothing comes any more; returns when the receiver has all that was sent."""
        ...

    def close(self) -> None:
        """Let go of the connection."""
        ...


def lowest_room(window: int) -> int:
    """How much room a sender that met a full window waits for: half of it.

    To wake up for every single message costs more than to make a small one: what a process needs
    has left the caches by then. The sender runs ahead by less than the window at times, never by
    more.
    """
    return max(1, window // 2)


class ObjectStoreChannel:
    """Pushes messages through Ray's object store.

    Arrays above Ray's inlining limit (100 KB) are put into shared memory once and read there
    without a copy; smaller ones ride in the call. The reference dies when the message is taken.

    Args:
        receiver: handle of an actor with `deliver(key, arrays, hold, incarnation)` and, answered
            after what was delivered before, `identify()`.
        window: most messages that may be under way or waiting at the receiver; None where the
            data flow itself bounds them (gradients, readouts, tables).
        incarnation: of the chain that sender and receiver are in; any other refuses the messages.
    """

    def __init__(self, receiver: Any, window: int | None, incarnation: int) -> None:
        self._receiver, self._window = receiver, window
        self._incarnation = incarnation
        self.blocked_ns, self.is_blocked = 0, False
        self._under_way: deque[ray.ObjectRef[None]] = deque()

    def send(self, key: Key, message: Message) -> int:
        """Send `message`; the receiver takes it by `key`.

        Raises:
            StoppedError: when the receiver's run ends: it takes no more messages.
        """
        arrays = wire.encode(message)
        if self._window is None:
            deliver = self._receiver.deliver.options(num_returns=0)
            deliver.remote(key, arrays, False, self._incarnation)
            return wire.size(arrays)
        if len(self._under_way) >= self._window:
            started, self.is_blocked = time.monotonic_ns(), True
            oldest = [self._under_way.popleft() for _ in range(lowest_room(self._window))]
            try:
                ray.get(oldest)
            except RayTaskError as error:
                if isinstance(error.cause, StoppedError):
                    raise StoppedError from error
                raise
            self.blocked_ns += time.monotonic_ns() - started
            self.is_blocked = False
        call = self._receiver.deliver.remote(key, arrays, True, self._incarnation)
        self._under_way.append(call)
        return wire.size(arrays)

    def leave(self) -> None:
        """Wait until the receiver has all: Ray drops what a sender that ended had in its store."""
        ray.get([*self._under_way, self._receiver.identify.remote()])

    def close(self) -> None:
        """Nothing to do: references die with the channel, and Ray ends calls to who is lost."""
