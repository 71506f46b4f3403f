"""Where an actor's incoming messages wait until its program asks for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from learning.messages import Key, Message


class StoppedError(RuntimeError):
    """The run ends: nobody will send what this actor waits for, or take what it sends."""


class Mailbox:
    """Messages by key, delivered by transport threads and taken by the program's thread."""

    def __init__(self) -> None:
        self._messages: dict[Key, tuple[Message, Callable[[], None] | None]] = {}
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._held: dict[Key, threading.Event] = {}  # of senders that wait, by message
        self._when_failed: list[Callable[[], None]] = []
        self.waited_ns = 0
        self.is_waiting = False  # whether the program waits for a message

    @property
    def stopped(self) -> bool:
        """Whether the run ends."""
        return isinstance(self._error, StoppedError)

    @property
    def failed(self) -> bool:
        """Whether `fail` was called."""
        return self._error is not None

    def when_failed(self, call: Callable[[], None]) -> None:
        """Have a function called by `fail`."""
        self._when_failed.append(call)

    def fail(self, error: Exception) -> None:
        """Let everyone who waits here, now or later, get this error instead."""
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()
            for event in self._held.values():
                event.set()
        for call in self._when_failed:
            call()

    def put(self, key: Key, message: Message, taken: Callable[[], None] | None = None) -> None:
        """Deliver a message; `taken` is called in the thread that takes it.

        Raises:
            RuntimeError: when one with this key is waiting already.
        """
        with self._changed:
            if key in self._messages:
                raise RuntimeError(f"a second message {key} arrived before the first was taken")
            self._messages[key] = (message, taken)
            self._changed.notify_all()

    def clear(self) -> None:
        """Drop all messages; their senders get their room back as if they had been taken."""
        with self._changed:
            dropped = list(self._messages.values())
            self._messages.clear()
            for event in self._held.values():
                event.set()
            self._held.clear()
        for _, taken in dropped:
            if taken is not None:
                taken()

    def take(self, key: Key) -> Message:
        """Wait for a message and remove it; the time waited is added to `waited_ns`.

        Raises:
            Exception: what `fail` was given; what is here can still be taken, unless the run ends.
        """
        with self._changed:
            if key not in self._messages:
                started, self.is_waiting = time.monotonic_ns(), True
                self._changed.wait_for(lambda: key in self._messages or self._error)
                self.waited_ns += time.monotonic_ns() - started
                self.is_waiting = False
            if self._error and (self.stopped or key not in self._messages):
                raise self._error
            message, taken = self._messages.pop(key)
            event = self._held.pop(key, None)
        if event is not None:
            event.set()
        if taken is not None:
            taken()
        return message

    def wait_taken(self, key: Key) -> None:
        """Wait until the message is no longer here: the sender's window depends on it."""
        with self._changed:
            if key not in self._messages:
                return
            event = self._held.setdefault(key, threading.Event())
            if self._error:
                event.set()
        event.wait()  # of its own: one condition would wake all held senders for each message
        if self._error and key in self._messages:
            raise self._error
