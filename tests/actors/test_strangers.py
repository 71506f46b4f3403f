"""Whoever reaches a receiver's sockets without the secret costs it nothing, and ends nothing."""

from __future__ import annotations

import errno
import os
import resource
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from actors import door, greeting
from actors.direct import DirectChannel
from actors.door import MOST_STRANGERS, Door
from actors.greeting import CHALLENGE, HELLO, LONGEST_NAME, PROOF, Caller, GreetingError, greet
from actors.receiver import Receiver
from actors.sockets import PeerLostError
from learning.messages import Key
from tests.actors.channels import SECRET, Told, message

Address = str | tuple[str, int]


@pytest.fixture
def strangers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def address(receiver: Receiver, near: bool) -> Address:
    return receiver.endpoint.path if near else (receiver.endpoint.host, receiver.endpoint.port)


def knock(stack: ExitStack, address: Address) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    stack.enter_context(sock)
    sock.settimeout(30)
    sock.connect(address)
    return sock


def all_of(sock: socket.socket) -> bytes:
    """All that the receiver says until it hangs up, however it does."""
    said = b""
    try:
        while data := sock.recv(4096):
            said += data
    except ConnectionResetError:
        pass
    return said


def passes(mailbox: Told, channel: Callable[[int | None], DirectChannel]) -> bool:
    """Whether a message of who knows the secret arrives."""
    sender = channel(None)
    sender.send(Key("x", 0), message(5))
    found = mailbox.take(Key("x", 0))["x"][0].item()
    sender.leave()
    return found == 5


def test_a_peer_gets_in_while_silent_strangers_hold_every_place(
    mailbox: Told,
    address: Address,
    channel: Callable[[int | None], DirectChannel],
    strangers: ExitStack,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(door, "GREETING_SECONDS", 1e6)  # nobody has to go for that
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    silent = [knock(strangers, address) for _ in range(MOST_STRANGERS + 40)]
    assert passes(mailbox, channel)
    assert len(all_of(silent[0])) == CHALLENGE  # the oldest had to go
    assert threading.active_count() <= threads + 2  # the reader of the peer, and of the door
    ours = len(silent)  # their own ends, in this very process
    assert len(os.listdir("/proc/self/fd")) <= files + ours + MOST_STRANGERS + 4
    assert not mailbox.failed


@pytest.mark.parametrize(
    "words",
    {
        "half a greeting": b"\0" * (HELLO.size - 1),
        "a wrong proof": HELLO.pack(b"c" * CHALLENGE, b"p" * PROOF, 1, 6) + b"block1",
        "zeros": bytes(200),
        "a long name": HELLO.pack(b"c" * CHALLENGE, b"p" * PROOF, 1, LONGEST_NAME + 1),
        "a web browser": b"GET / HTTP/1.0\r\n\r\n" * 20,
        "a length of 2 GiB, as a pickled connection has it": struct.pack("!i", 2**31 - 1) * 40,
        "nothing": b"",
    }.items(),
    ids=lambda pair: pair[0],
)
def test_wrong_words_end_a_strangers_connection_only(
    mailbox: Told,
    address: Address,
    channel: Callable[[int | None], DirectChannel],
    strangers: ExitStack,
    words: tuple[str, bytes],
) -> None:
    one = knock(strangers, address)
    with suppress(ConnectionResetError, BrokenPipeError):  # it may hang up at the first words
        one.sendall(words[1])
    with suppress(OSError):
        one.shutdown(socket.SHUT_WR)
    assert len(all_of(one)) in (0, CHALLENGE, CHALLENGE + PROOF)  # hung up, at the latest here
    assert passes(mailbox, channel)
    assert not mailbox.failed


def test_who_connects_and_goes_at_once_many_times_does_no_harm(
    mailbox: Told, address: Address, channel: Callable[[int | None], DirectChannel]
) -> None:
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(100):
        with ExitStack() as stack:
            while True:
                try:
                    knock(stack, address)
                    break
                except BlockingIOError:  # the queue is full: the storm is as fast as it can be
                    continue
    assert passes(mailbox, channel)
    assert len(os.listdir("/proc/self/fd")) <= files + MOST_STRANGERS + 4
    assert not mailbox.failed


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_whole_greeting_has_one_deadline(strangers: ExitStack) -> None:
    """One byte now and then would otherwise keep a place for ever."""
    clock, broken = Clock(), list[Exception]()
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    guarded = Door([server], SECRET, lambda *_: None, broken.append, clock)
    slow = knock(strangers, address)
    assert len(slow.recv(CHALLENGE)) == CHALLENGE
    for second in range(1, int(greeting.GREETING_SECONDS) + 1):
        slow.sendall(b"x")
        clock.now = float(second)
        assert len(knock(strangers, address).recv(CHALLENGE)) == CHALLENGE  # the door has looked
    assert all_of(slow) == b""
    guarded.close()
    assert not broken


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOMEM])
def test_errors_of_accept_pass(
    monkeypatch: pytest.MonkeyPatch, strangers: ExitStack, number: int
) -> None:
    monkeypatch.setattr(door, "_PAUSE", 0.001)
    failures = iter([OSError(number, os.strerror(number))] * 5)

    class Poor(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            for error in failures:
                raise error
            return super().accept()

    server = Poor()
    server.bind(("127.0.0.1", 0))
    server.listen()
    welcomed, broken = list[Caller](), list[Exception]()
    address = server.getsockname()
    guarded = Door([server], SECRET, lambda _, caller: welcomed.append(caller), broken.append)
    with greet(address, Caller("block1", 2), SECRET):
        assert next(failures, None) is None
    guarded.close()
    assert welcomed == [Caller("block1", 2)] and not broken


def test_a_process_without_descriptors_takes_connections_again_when_it_has_some(
    mailbox: Told, address: Address, strangers: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's own limit, in place of a stand-in for `accept`."""
    waiting = threading.Event()
    wait = Door._wait

    def waits(self: Door, error: OSError) -> None:
        waiting.set()
        wait(self, error)

    monkeypatch.setattr(Door, "_wait", waits)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    outside = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    with outside:
        highest = max(int(name) for name in os.listdir("/proc/self/fd") if name.isdigit())
        fillers: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 2, hard))
        try:
            while True:
                try:
                    fillers.append(os.dup(outside.fileno()))
                except OSError:
                    break
            outside.settimeout(30)
            outside.connect(address)
            assert waiting.wait(300)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for filler in fillers:
                os.close(filler)
        assert len(outside.recv(CHALLENGE)) == CHALLENGE
    assert not mailbox.failed


def test_a_unix_socket_is_for_this_user_only(
    mailbox: Told, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, strangers: ExitStack
) -> None:
    monkeypatch.setattr(door.os, "geteuid", lambda: 4_000_000)  # now the others are somebody else
    assert all_of(knock(strangers, receiver.endpoint.path)) == b""  # not even a challenge
    assert not mailbox.failed


def test_nobody_can_use_what_the_other_end_has_said(strangers: ExitStack) -> None:
    """A proof sent back to who gave it is none."""
    server = socket.create_server(("127.0.0.1", 0))

    def mirror() -> None:
        sock = strangers.enter_context(server.accept()[0])
        sock.sendall(b"m" * CHALLENGE)
        said = sock.recv(4096)
        sock.sendall(said[CHALLENGE : CHALLENGE + PROOF])

    thread = threading.Thread(target=mirror, daemon=True)
    thread.start()
    with pytest.raises(GreetingError):
        greet(server.getsockname(), Caller("block1", 1), SECRET)
    thread.join(300)
    server.close()


def test_who_is_pushed_out_by_strangers_knocks_again() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    welcomed: list[Caller] = []

    def first_nobody() -> None:
        for _ in range(2):
            server.accept()[0].close()
        doors.append(Door([server], SECRET, lambda _, who: welcomed.append(who), broken.append))

    doors, broken = list[Door](), list[Exception]()
    address = server.getsockname()
    thread = threading.Thread(target=first_nobody, daemon=True)
    thread.start()
    greet(address, Caller("block1", 0), SECRET).close()
    thread.join(300)
    doors[0].close()
    assert welcomed == [Caller("block1", 0)] and not broken


def test_closing_frees_the_addresses_and_ends_every_connection(
    receiver: Receiver, address: Address, strangers: ExitStack, near: bool
) -> None:
    channels = [
        DirectChannel("block1", "here" if near else "there", receiver.endpoint, SECRET, 1)
        for _ in range(8)
    ]
    stranger = knock(strangers, address)

    def leave() -> None:
        for channel in channels[::2]:
            with suppress(PeerLostError):
                channel.leave()

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()  # the receiver forgets senders that say farewell while it closes
    receiver.close()
    leaving.join(300)
    assert len(all_of(stranger)) in (0, CHALLENGE)
    with pytest.raises(ConnectionRefusedError):
        knock(strangers, address)


def test_lost_senders_leave_no_descriptor_behind(
    mailbox: Told, receiver: Receiver, channel: Callable[[int | None], DirectChannel]
) -> None:
    for _ in range(20):
        channel(1).close()
    assert mailbox.told.wait(300)
    while receiver._open:  # every reader lets go, sooner or later
        os.sched_yield()
