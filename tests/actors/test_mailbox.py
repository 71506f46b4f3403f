"""Messages are found by key, in any order, and those who wait are counted and woken."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from actors.mailbox import Mailbox
from learning.messages import Key

A, B = Key("x", 1), Key("x", 1, shard=1)


def message(value: int) -> dict[str, torch.Tensor]:
    return {"x": torch.tensor(value)}


class Watched(Mailbox):
    """Says when somebody has begun to wait; whoever then delivers comes after that."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = threading.Event()
        wait_for = self._changed.wait_for

        def watched(predicate: Callable[[], bool]) -> bool:
            if not predicate():
                self.waiting.set()
            return wait_for(predicate)

        self._changed.wait_for = watched  # type: ignore[method-assign]
        waiting = self.waiting

        class Held(dict[Key, threading.Event]):
            def setdefault(self, key: Key, default: threading.Event) -> threading.Event:  # type: ignore[override]
                waiting.set()
                return super().setdefault(key, default)

        self._held = Held()


def in_thread(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_messages_are_taken_by_key_in_any_order() -> None:
    mailbox = Mailbox()
    keys = [
        Key("x", 1),
        Key("x", 2),
        Key("x", 1, shard=1),
        Key("g", 1, origin=2),
        Key("g", 1, origin=3),
        Key("e", 1, split="test"),
        Key("e", 1, split="validation"),
    ]
    for value, key in enumerate(keys):
        mailbox.put(key, message(value))
    for value, key in reversed(list(enumerate(keys))):
        assert mailbox.take(key)["x"] == value
    assert mailbox.waited_ns == 0


def test_second_message_of_a_key_is_refused_until_the_first_is_taken() -> None:
    mailbox = Mailbox()
    mailbox.put(A, message(1))
    with pytest.raises(RuntimeError, match="second message"):
        mailbox.put(A, message(2))
    assert mailbox.take(A)["x"] == 1
    mailbox.put(A, message(3))
    assert mailbox.take(A)["x"] == 3


def test_take_waits_for_its_own_key_and_counts_the_time() -> None:
    mailbox, taken = Watched(), []
    thread = in_thread(lambda: taken.append(mailbox.take(A)["x"].item()))
    assert mailbox.waiting.wait(300)
    mailbox.put(B, message(2))
    assert taken == []
    mailbox.put(A, message(1))
    thread.join(300)
    assert taken == [1]
    waited = mailbox.waited_ns
    assert waited > 0
    assert mailbox.take(B)["x"] == 2
    assert mailbox.waited_ns == waited


def test_wait_taken_returns_when_the_message_is_gone() -> None:
    mailbox, log = Watched(), []
    mailbox.wait_taken(A)  # was never here
    mailbox.put(A, message(1))
    mailbox.put(B, message(2))

    def hold() -> None:
        mailbox.wait_taken(A)
        log.append("released")

    thread = in_thread(hold)
    assert mailbox.waiting.wait(300)
    mailbox.take(B)
    assert log == []
    mailbox.take(A)
    thread.join(300)
    assert log == ["released"]
    assert mailbox.waited_ns == 0  # that of the receiver's program only


def test_many_threads_deliver_while_one_takes() -> None:
    mailbox, count = Mailbox(), 200
    start = threading.Barrier(4)

    def deliver(first: int) -> None:
        start.wait(300)
        for step in range(first, count, 4):
            mailbox.put(Key("x", step), message(step))
            mailbox.wait_taken(Key("x", step))

    threads = [in_thread(lambda first=first: deliver(first)) for first in range(4)]
    assert [mailbox.take(Key("x", s))["x"].item() for s in range(count)] == list(range(count))
    for thread in threads:
        thread.join(300)
        assert not thread.is_alive()
