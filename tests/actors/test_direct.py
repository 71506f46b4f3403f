"""Messages over sockets: by key, with their bits, within the window, and nothing when one ends."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import frames
from actors.direct import DirectChannel, make_sure_of
from actors.mailbox import Mailbox, StoppedError
from actors.receiver import Receiver
from actors.sockets import Endpoint, PeerLostError, UnreachableError
from learning.errors import UserError
from learning.messages import Key

SECRET = b"of this run"
CPU = torch.device("cpu")
LARGE = 4 * 2**20  # float32 values: 16 MiB, more than a socket's buffers hold

pytestmark = pytest.mark.timeout(60)


class Told(Mailbox):
    """Says when it has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()
        self.when_failed(self.told.set)


@pytest.fixture(params=["unix", "tcp"])
def near(request: pytest.FixtureRequest) -> bool:
    return request.param == "unix"


@pytest.fixture
def mailbox() -> Told:
    return Told()


@pytest.fixture
def receiver(mailbox: Told) -> Receiver:
    return Receiver("block2", mailbox, CPU, SECRET, node="here", host="127.0.0.1")


@pytest.fixture
def channel(receiver: Receiver, near: bool) -> Callable[[int | None], DirectChannel]:
    node = "here" if near else "elsewhere"
    return lambda window: DirectChannel("block1", node, receiver.endpoint, SECRET, window)


def message(value: float, size: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.full((size,), float(value))}


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a channel asks its socket for answers and is ready to wait."""
    event = threading.Event()

    class Watched(socket.socket):
        def recv(self, size: int, flags: int = 0) -> bytes:
            if not flags:
                event.set()
            return super().recv(size, flags)

    def connect(self: DirectChannel, *arguments: Any) -> None:
        original_init(self, *arguments)
        sock = self._socket
        self._socket = Watched(sock.family, sock.type, sock.proto, sock.detach())

    original_init = DirectChannel.__init__
    monkeypatch.setattr(DirectChannel, "__init__", connect)
    return event


ARRAYS = st.dictionaries(
    st.sampled_from(["x", "y", "gradient", "d:bfloat16"]),
    st.builds(
        lambda dtype, shape, seed: (np.random.default_rng(seed).random(shape) * 100).astype(dtype),
        st.sampled_from(["f4", "f8", "f2", "i8", "i2", "u1", "?"]),
        st.lists(st.integers(0, 5), max_size=4).map(tuple),
        st.integers(0, 9),
    ),
)
KEYS = st.builds(
    Key,
    st.sampled_from(["x", "g", "table"]),
    st.integers(0, 10**9),
    st.integers(0, 64),
    st.integers(0, 99),
    st.sampled_from(["", "test"]),
)


@given(sent=st.lists(st.tuples(KEYS, ARRAYS), max_size=4))
def test_what_is_read_is_what_was_written(sent: list[tuple[Key, dict[str, np.ndarray]]]) -> None:
    left, right = socket.socketpair()
    with left, right:
        for key, arrays in sent:
            frames.write(left, key, arrays)
        left.shutdown(socket.SHUT_WR)
        reader = frames.Reader(right)
        for key, arrays in sent:
            found = reader.read()
            assert found is not None
            assert found[0] == key and isinstance(found[0], Key)
            assert list(found[1]) == list(arrays)
            for name, array in arrays.items():
                got = found[1][name]
                assert (got.dtype, got.shape) == (array.dtype, array.shape)
                assert got.tobytes() == array.tobytes()
                assert got.__array_interface__["data"][0] % 64 == 0 or not got.size
        assert reader.read() is None


def test_half_a_message_and_arrays_of_objects_are_errors() -> None:
    left, right = socket.socketpair()
    with left, right:
        frames.write(left, Key("x", 1), {"x": np.ones(3)})
        whole = right.recv(4096)
        left.sendall(whole[:-1])
        left.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionError, match="within a message"):
            frames.Reader(right).read()
    left, right = socket.socketpair()
    with left, right:
        left.sendall(whole.replace(b'"<f8"', b'"|O8"'))
        with pytest.raises(ValueError, match="dtype"):
            frames.Reader(right).read()


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
    assert waiting.wait(30)
    assert sent == [0, 1]
    for step in range(4):
        assert mailbox.take(Key("x", step))["x"][0] == step
    thread.join(30)
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
        thread.join(30)
    assert mailbox.take(Key("x", 0))["x"].sum() == LARGE
    assert others.take(Key("x", 0))["x"].sum() == 2 * LARGE


def test_the_sender_may_change_its_tensor_after_sending(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    x, sender = torch.ones(1000), channel(None)
    sender.send(Key("x", 0), {"x": x})
    x.zero_()
    assert mailbox.take(Key("x", 0))["x"].sum() == 1000


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
    assert waiting.wait(30)
    mailbox.fail(StoppedError())
    thread.join(30)
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
    assert mailbox.told.wait(30)
    with pytest.raises(PeerLostError, match="the connection with block1 ended") as raised:
        mailbox.take(Key("x", 1))
    assert raised.value.peer == "block1"


def test_what_a_lost_sender_had_sent_can_still_be_taken(
    mailbox: Told, channel: Callable[[int | None], DirectChannel]
) -> None:
    sender = channel(2)
    sender.send(Key("x", 0), message(7))
    sender.close()
    assert mailbox.told.wait(30)
    assert mailbox.take(Key("x", 0))["x"][0] == 7
    with pytest.raises(PeerLostError):
        mailbox.take(Key("x", 1))


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


def test_lost_receiver_is_named_to_its_sender() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    accepted: list[Any] = []

    def accept() -> None:
        connection = Connection(server.accept()[0].detach())
        deliver_challenge(connection, SECRET)
        answer_challenge(connection, SECRET)
        accepted.append(connection)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    host, port = server.getsockname()
    channel = DirectChannel("block1", "a", Endpoint("block2", "b", "", host, port), SECRET, 1)
    thread.join(30)
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
