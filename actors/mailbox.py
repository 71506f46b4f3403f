"""Where an actor's incoming messages wait until its program asks for them."""

from __future__ import annotations

import threading
import time

from actors.operations import Key
from learning.messages import Message


class Mailbox:
    """Messages by key, delivered by transport threads and taken by the program's thread."""

    def __init__(self) -> None:
        self._messages: dict[Key, Message] = {}
        self._changed = threading.Condition()
        self.waited_ns = 0

    def put(self, key: Key, message: Message) -> None:
        """Deliver a message.

        Raises:
            RuntimeError: when one with this key is waiting already.
        """
        with self._changed:
            if key in self._messages:
                raise RuntimeError(f"a second message {key} arrived before the first was taken")
            self._messages[key] = message
            self._changed.notify_all()

    def take(self, key: Key) -> Message:
        """Wait for a message and remove it; the time waited is added to `waited_ns`."""
        with self._changed:
            if key not in self._messages:
                started = time.monotonic_ns()
                self._changed.wait_for(lambda: key in self._messages)
                self.waited_ns += time.monotonic_ns() - started
            message = self._messages.pop(key)
            self._changed.notify_all()
        return message

    def wait_taken(self, key: Key) -> None:
        """Wait until the message is no longer here: the sender's window depends on it."""
        with self._changed:
            self._changed.wait_for(lambda: key not in self._messages)
