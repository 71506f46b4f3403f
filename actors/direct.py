"""Direct channels: messages from process to process over sockets, past the object store.

Within a node a channel is a Unix socket, between nodes TCP. Each has the sending actor at one end
and a reading thread of the receiving actor at the other. The reader takes every message off the
socket at once, so that nobody ever waits for a reader; what bounds a channel is its window: the
receiver answers one byte for each message that its program has taken, half a window at a time.

Who connects proves by HMAC that it knows the run's secret (actors/greeting.py); on a Unix socket
the kernel says besides that it is this user's. What travels is not encrypted, as in Ray itself:
keep the cluster in a private network.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress

from actors import frames, wire
from actors.greeting import Caller, greet
from actors.mailbox import StoppedError
from actors.sockets import FAREWELL, STOPPED, Endpoint, PeerLostError, UnreachableError, prepare
from learning.messages import Key, Message


class DirectChannel:
    """The sending end; satisfies `actors.transport.Channel`.

    Args:
        sender: name of this actor.
        node: id of the node this actor is on.
        window: as in `ObjectStoreChannel`.

    Raises:
        UnreachableError: when the receiver cannot be reached.
    """

    def __init__(
        self, sender: str, node: str, receiver: Endpoint, secret: bytes, window: int | None
    ) -> None:
        self.blocked_ns, self.is_blocked = 0, False
        self._window, self._receiver = window, receiver.name
        self._under_way = 0
        self._socket = _connected(sender, node, receiver, secret, Caller(sender, window or 0))

    def send(self, key: Key, message: Message) -> int:
        """Send; blocks while the window is full. Returns the bytes sent.

        Raises:
            StoppedError: when the receiver's run ends: it takes no more messages.
            PeerLostError: when the receiver has gone.
        """
        arrays = wire.encode(message)
        try:
            if self._window is not None:
                self._wait_for_room(self._window)
            frames.write(self._socket, key, arrays)
        except OSError as error:  # it ended, or the network between gave up
            raise PeerLostError(self._receiver) from error
        return wire.size(arrays)

    def _wait_for_room(self, window: int) -> None:
        with suppress(BlockingIOError):  # no answers waiting
            self._count(self._socket.recv(4096, socket.MSG_DONTWAIT))
        if self._under_way >= window:
            started, self.is_blocked = time.monotonic_ns(), True
            while self._under_way >= window:
                self._count(self._socket.recv(4096))
            self.blocked_ns += time.monotonic_ns() - started
            self.is_blocked = False
        self._under_way += 1

    def _count(self, answers: bytes) -> None:
        if not answers:
            raise PeerLostError(self._receiver)
        if STOPPED in answers:
            raise StoppedError
        self._under_way -= len(answers)

    def leave(self) -> None:
        """Say farewell, and wait until the receiver has read it, and so all before it."""
        try:
            frames.write(self._socket, FAREWELL, {})
            while self._socket.recv(4096):
                pass
        except OSError as error:
            raise PeerLostError(self._receiver) from error

    def close(self) -> None:
        """End the connection, also under a waiting `send`; to the receiver this actor is gone."""
        with suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def make_sure_of(sender: str, node: str, receiver: Endpoint, secret: bytes) -> None:
    """Knock at a receiver, and go away before it takes notice.

    Raises:
        UnreachableError: when it cannot be reached.
    """
    _connected(sender, node, receiver, secret, Caller("", 0)).close()


def _connected(
    sender: str, node: str, receiver: Endpoint, secret: bytes, caller: Caller
) -> socket.socket:
    """A socket whose ends are sure of one another."""
    near = receiver.path and receiver.node == node
    address = receiver.path if near else (receiver.host, receiver.port)
    try:
        sock = greet(address, caller, secret)
        prepare(sock)
        return sock
    except OSError as error:
        raise UnreachableError(
            receiver.name,
            f"{sender} cannot connect to {receiver.name} at {address!r} ({error}): open the "
            "TCP ports between the nodes or set engine.transport=object_store",
        ) from error
