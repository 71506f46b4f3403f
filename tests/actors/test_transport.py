"""Messages through Ray's object store: by key, within the window, and without copies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch

from actors import transport
from actors.transport import ObjectStoreChannel
from learning.messages import Key, Post

LARGE = 4 * 2**20  # float32 values: 16 MiB


@pytest.fixture(scope="module")
def receiver(ray_cluster: None) -> Iterator[Any]:
    """An actor with the shell, mailbox and concurrency group of all actors."""
    from actors.execution import Executor
    from actors.mailbox import Mailbox
    from actors.operations import Operation
    from actors.shell import MAIL, Shell

    class Idle(Executor):
        def execute(self, op: Operation) -> None:
            raise AssertionError(op)

    class Receiver(Shell):
        def __init__(self) -> None:
            super().__init__()
            self._begin(1, Idle(Mailbox(), 1))

        def take(self, key: Key) -> tuple[float, tuple[int, ...]]:
            x = self._executor.mailbox.take(key)["x"]
            return float(x.sum()), tuple(x.shape)

        def waiting(self) -> list[Key]:
            return sorted(self._executor.mailbox._messages)

        @ray.method(concurrency_group=MAIL)
        def look(self, arrays: dict[str, np.ndarray]) -> tuple[bool, bool, bool]:
            from actors import wire

            array = arrays["x"]
            tensor = wire.decode(arrays, torch.device("cpu"))["x"]
            same = tensor.data_ptr() == array.__array_interface__["data"][0]
            return array.flags.owndata, array.flags.writeable, same

    actor = ray.remote(concurrency_groups={MAIL: 8})(Receiver).options(num_cpus=0).remote()
    yield actor
    ray.kill(actor)


def message(value: float, size: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.full((size,), float(value))}


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a channel begins to wait for room."""
    event = threading.Event()
    get = ray.get

    class Watched:
        @staticmethod
        def get(reference: Any) -> Any:
            event.set()
            return get(reference)

    monkeypatch.setattr(transport, "ray", Watched)
    return event


@pytest.mark.parametrize("window", [None, 4])
def test_messages_are_found_by_key_in_any_order(receiver: Any, window: int | None) -> None:
    channel = ObjectStoreChannel(receiver, window, 1)
    keys = [Key("g", step, shard, origin=2) for step in range(2) for shard in range(2)]
    for value, key in enumerate(keys):
        assert channel.send(key, message(value)) == 12
    for value, key in reversed(list(enumerate(keys))):
        assert ray.get(receiver.take.remote(key), timeout=600) == (3.0 * value, (3,))
    assert channel.blocked_ns == 0


def test_full_window_holds_the_sender_back_until_a_message_is_taken(
    receiver: Any, blocked: threading.Event
) -> None:
    channel, sent = ObjectStoreChannel(receiver, 2, 1), []

    def send() -> None:
        for step in range(4):
            channel.send(Key("x", step), message(step))
            sent.append(step)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert blocked.wait(300)
    assert sent == [0, 1]
    held = list(channel._under_way)  # the call of the first message is being waited for
    assert len(held) == 1
    assert ray.wait(held, timeout=0)[0] == []
    for step in range(2):
        assert ray.get(receiver.take.remote(Key("x", step)), timeout=600)[0] == 3.0 * step
    thread.join(300)
    assert sent == [0, 1, 2, 3]
    assert channel.blocked_ns > 0
    for step in (2, 3):
        ray.get(receiver.take.remote(Key("x", step)), timeout=600)


def test_channel_without_a_window_never_holds_back(receiver: Any, blocked: threading.Event) -> None:
    channel = ObjectStoreChannel(receiver, None, 1)
    for step in range(20):
        channel.send(Key("readout", step), message(step))
    assert not blocked.is_set() and channel.blocked_ns == 0
    ray.get(receiver.take.remote(Key("readout", 19)), timeout=600)
    for step in range(19):
        ray.get(receiver.take.remote(Key("readout", step)), timeout=600)
    assert ray.get(receiver.waiting.remote()) == []


def test_large_arrays_arrive_as_views_of_shared_memory(receiver: Any) -> None:
    array = torch.ones(LARGE).numpy()
    owns, writeable, same = ray.get(receiver.look.remote({"x": array}), timeout=600)
    assert (owns, writeable, same) == (False, False, True)
    channel = ObjectStoreChannel(receiver, 1, 1)
    assert channel.send(Key("x", 0), message(2.0, LARGE)) == 4 * LARGE
    assert ray.get(receiver.take.remote(Key("x", 0)), timeout=600) == (2.0 * LARGE, (LARGE,))


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether a condition comes true within many of Ray's reports."""
    return any(condition() for _ in range(20_000))


def test_memory_of_a_message_is_given_back_when_it_is_taken(receiver: Any) -> None:
    def free() -> float:
        return ray.available_resources()["object_store_memory"]

    whole = ray.cluster_resources()["object_store_memory"]
    assert eventually(lambda: whole - free() < 4 * LARGE)
    channel, key = ObjectStoreChannel(receiver, 1, 1), Key("x", 7)
    channel.send(key, message(1.0, LARGE))
    assert eventually(lambda: whole - free() >= 4 * LARGE)
    ray.get(receiver.take.remote(key), timeout=600)
    assert eventually(lambda: whole - free() < 4 * LARGE)


def test_a_sender_to_a_receiver_whose_run_ends_stops_too(ray_cluster: None) -> None:
    from actors.execution import Executor
    from actors.mailbox import Mailbox
    from actors.operations import Kind, Operation
    from actors.shell import MAIL, Shell

    class Waiting(Executor):
        def execute(self, op: Operation) -> None:
            self.mailbox.take(Key("never", 0))

    class Receiver(Shell):
        def __init__(self) -> None:
            super().__init__()
            self._begin(1, Waiting(Mailbox(), 1))

    class Sending(Executor):
        def execute(self, op: Operation) -> None:
            self.send([Post("block2", Key("x", op.step), message(op.step))])

    actor = ray.remote(concurrency_groups={MAIL: 8})(Receiver).options(num_cpus=0).remote()
    chunk = [Operation(Kind.BATCH, step) for step in range(5)]
    receivers_report = actor.run.remote(chunk)
    sender = Sending(Mailbox(), 1)
    sender.channels = {"block2": ObjectStoreChannel(actor, 2, 1)}
    stop = actor.stop.remote(1)
    ray.get(stop)
    report = sender.run(chunk)
    assert [span.step for span in report.spans] == [0, 1]  # the third waited for room
    assert report.error is None
    assert sender.mailbox.stopped
    assert sender.run(chunk).spans == []
    assert ray.get(receivers_report).spans == []
    ray.kill(actor)
