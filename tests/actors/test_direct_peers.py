"""When a peer ends, is lost, or is a stranger: nobody waits for ever, and the user is told."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable

import pytest

from actors.direct import DirectChannel, make_sure_of
from actors.greeting import Knock
from actors.mailbox import StoppedError
from actors.receiver import Receiver
from actors.sockets import Endpoint, PeerLostError, UnreachableError
from learning.errors import UserError
from learning.messages import Key
from tests.actors.channels import SECRET, Told, message


def test_a_sender_to_a_receiver_whose_run_ends_stops_too(
    waiting: threading.Event, mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender, raised = channel(1), []

    def send() -> None:
        try:
            for step in range(2):
                sender.send(Key("x", step), message(step))
        except StoppedError as error:
            raised.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    assert waiting.wait(300)
    mailbox.fail(StoppedError())
    thread.join(300)
    assert len(raised) == 1


def test_who_connects_after_the_end_of_the_run_stops_as_well(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    mailbox.fail(StoppedError())
    sender = channel(1)
    with pytest.raises(StoppedError):
        for step in range(2):
            sender.send(Key("x", step), message(step))


def test_lost_sender_is_named_to_who_waits_for_it(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender = channel(2)
    sender.send(Key("x", 0), message(0))
    sender.close()
    assert mailbox.told.wait(300)
    with pytest.raises(PeerLostError, match="the connection with block1 ended") as raised:
        mailbox.take(Key("x", 1))
    assert raised.value.peer == "block1"


def test_what_a_lost_sender_had_sent_can_still_be_taken(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender = channel(2)
    sender.send(Key("x", 0), message(7))
    sender.close()
    assert mailbox.told.wait(300)
    assert mailbox.take(Key("x", 0))["x"][0] == 7
    with pytest.raises(PeerLostError):
        mailbox.take(Key("x", 1))


def test_lost_receiver_is_named_to_its_sender() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    accepted: list[socket.socket] = []

    def accept() -> None:
        accepted.append(server.accept()[0])
        knock = Knock(SECRET)
        accepted[0].sendall(knock.challenge)
        while knock.missing:
            knock.hear(accepted[0].recv(knock.missing))
        accepted[0].sendall(knock.caller()[1])

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    host, port = server.getsockname()
    channel = DirectChannel("block1", "a", Endpoint("block2", "b", "", host, port), SECRET, 1)
    thread.join(300)
    channel.send(Key("x", 0), message(0))
    accepted[0].close()
    with pytest.raises(PeerLostError, match="block2"):
        channel.send(Key("x", 1), message(1))


def test_strangers_are_refused_and_do_no_harm(
    mailbox: Told, receiver: Receiver, channel: Callable[[int | None], DirectChannel]
) -> None:
    with pytest.raises(UserError, match="block1 cannot connect to block2"):
        DirectChannel("block1", "elsewhere", receiver.endpoint, b"another secret", None)
    with socket.create_connection((receiver.endpoint.host, receiver.endpoint.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.0\r\n\r\n")
    with socket.create_connection((receiver.endpoint.host, receiver.endpoint.port)):
        pass  # gone before it has said anything
    silent = socket.create_connection((receiver.endpoint.host, receiver.endpoint.port))
    sender = channel(None)
    sender.send(Key("x", 0), message(5))
    assert mailbox.take(Key("x", 0))["x"][0] == 5
    silent.close()


def test_knocking_at_a_receiver_leaves_it_unaware(
    mailbox: Told, receiver: Receiver, channel: Callable[[int | None], DirectChannel]
) -> None:
    for node in (receiver.endpoint.node, "elsewhere"):
        make_sure_of("block1", node, receiver.endpoint, SECRET)
    with pytest.raises(UnreachableError, match="cannot connect to block2") as raised:
        make_sure_of("block1", "elsewhere", receiver.endpoint, b"another secret")
    again = pickle.loads(pickle.dumps(raised.value))  # as it comes from another process
    assert (again.peer, str(again)) == ("block2", str(raised.value))
    sender = channel(None)
    sender.send(Key("x", 0), message(5))
    assert mailbox.take(Key("x", 0))["x"][0] == 5
    assert not mailbox.failed


def test_where_nobody_listens_the_user_is_told_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        endpoint = Endpoint("block2", "b", "", "127.0.0.1", port)
        with pytest.raises(UserError, match=r"set engine\.transport=object_store"):
            DirectChannel("block1", "a", endpoint, SECRET, None)
