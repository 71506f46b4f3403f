"""Messages over sockets arrive by key, whole, and within the window."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch

from actors.direct import DirectChannel
from actors.receiver import Receiver
from learning.messages import Key
from tests.actors.channels import CPU, SECRET, Told, message

LARGE = 4 * 2**20  # float32 values: 16 MiB, more than a socket's buffers hold


@pytest.mark.parametrize("window", [None, 4])
def test_messages_are_found_by_key_in_any_order(
    mailbox: Told, channel: Callable[[int | None], DirectChannel], window: int | None
) -> None:
    sender = channel(window)
    keys = [Key("g", step, shard, origin=2) for step in range(2) for shard in range(2)]
    for value, key in enumerate(keys):
        assert sender.send(key, message(value)) == 12
    for value, key in reversed(list(enumerate(keys))):
        assert torch.equal(mailbox.take(key)["x"], torch.full((3,), float(value)))
    assert sender.blocked_ns == 0


def test_full_window_holds_the_sender_back_until_a_message_is_taken(
    waiting: threading.Event, mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender, sent = channel(2), []

    def send() -> None:
        for step in range(4):
            sender.send(Key("x", step), message(step))
            sent.append(step)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert waiting.wait(300)
    assert sent == [0, 1]
    for step in range(4):
        assert mailbox.take(Key("x", step))["x"][0] == step
    thread.join(300)
    assert sent == [0, 1, 2, 3]
    assert sender.blocked_ns > 0


def test_channel_without_a_window_never_waits(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender = channel(None)
    for step in range(20):
        sender.send(Key("readout", step), message(step))
    assert sender.blocked_ns == 0
    for step in range(20):
        assert mailbox.take(Key("readout", step))["x"][0] == step


def test_both_sides_may_send_more_than_the_sockets_hold_at_once(
    mailbox: Told, receiver: Receiver
) -> None:
    others = Told()
    other = Receiver("block1", others, CPU, SECRET, node="here", host=None)
    there = DirectChannel("block1", "here", receiver.endpoint, SECRET, None)
    back = DirectChannel("block2", "here", other.endpoint, SECRET, None)
    threads = [
        threading.Thread(target=c.send, args=(Key("x", 0), message(value, LARGE)), daemon=True)
        for value, c in ((1, there), (2, back))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert mailbox.take(Key("x", 0))["x"].sum() == LARGE
    assert others.take(Key("x", 0))["x"].sum() == 2 * LARGE


def test_the_sender_may_change_its_tensor_after_sending(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    x, sender = torch.ones(1000), channel(None)
    sender.send(Key("x", 0), {"x": x})
    x.zero_()
    assert mailbox.take(Key("x", 0))["x"].sum() == 1000


def test_clearing_the_mailbox_gives_room_back(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender, marker = channel(2), channel(None)
    for step in range(2):
        sender.send(Key("x", step), message(step))
    while len(mailbox._messages) < 2:  # two sockets: the marker may come first
        marker.send(Key("g", 0), message(0))
        mailbox.take(Key("g", 0))
    mailbox.clear()
    sender.send(Key("x", 2), message(2))
    assert mailbox.take(Key("x", 2))["x"][0] == 2


def test_messages_of_very_many_arrays_arrive(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender = channel(None)
    many = {f"weight{i}": torch.tensor(float(i)) for i in range(2500)}
    sender.send(Key("weights", 0), many)
    found = mailbox.take(Key("weights", 0))
    assert {name: t.item() for name, t in found.items()} == {n: t.item() for n, t in many.items()}
