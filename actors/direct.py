"""Direct channels: messages from process to process over sockets, past the object store.

Within a node a channel is a Unix socket, between nodes TCP. Each has the sending actor at one end
and a reading thread of the receiving actor at the other. The reader takes every message off the
socket at once, so that nobody ever waits for a reader; what bounds a channel is its window: the
receiver answers one byte for each message that its program has taken, half a window at a time.

Who connects proves by HMAC (of `multiprocessing.connection`) that it knows the run's secret. What
travels is not encrypted, as in Ray itself: keep the cluster in a private network.
"""

from __future__ import annotations

import os
import socket
import struct
import sys
import threading
import time
import uuid
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import NamedTuple

import torch

from actors import frames, wire
from actors.mailbox import Mailbox, StoppedError
from actors.transport import lowest_room
from learning.errors import UserError
from learning.messages import Key, Message

_TAKEN, _STOPPED = b"t", b"s"
_LONGEST_NAME = 1024  # bytes
_SEND_BUFFER = 8 * 2**20  # bytes
_BACKLOG = 128  # who may knock at once
_GREETING_SECONDS = 10  # for the other end's next word, until it has said who it is
_REFUSED = (AuthenticationError, EOFError, OSError, ValueError)


class PeerLostError(RuntimeError):
    """The actor at the other end of a channel has gone.

    Args:
        peer: its name.
    """

    def __init__(self, peer: str) -> None:
        super().__init__(peer)
        self.peer = peer

    def __str__(self) -> str:
        return f"the connection with {self.peer} ended"


class Endpoint(NamedTuple):
    """Where an actor takes direct messages.

    Attributes:
        name: the actor's.
        node: id of the node it is on.
        path: of its Unix socket, for senders on the same node.
        host, port: of its TCP socket, for all others; port 0 where there is none.
    """

    name: str
    node: str
    path: str
    host: str
    port: int


class DirectChannel:
    """The sending end; satisfies `actors.transport.Channel`.

    Args:
        sender: name of this actor.
        node: id of the node this actor is on.
        window: as in `ObjectStoreChannel`.

    Raises:
        UserError: when the receiver cannot be reached.
    """

    def __init__(
        self, sender: str, node: str, receiver: Endpoint, secret: bytes, window: int | None
    ) -> None:
        self.blocked_ns, self.is_blocked = 0, False
        self._window, self._receiver = window, receiver.name
        self._under_way = 0
        near = receiver.path and receiver.node == node
        address = receiver.path if near else (receiver.host, receiver.port)
        try:
            connection = _connection_to(address)
            # Both know the secret, and neither says it.
            answer_challenge(connection, secret)
            deliver_challenge(connection, secret)
            connection.send_bytes(sender.encode())
            connection.send_bytes(str(window or 0).encode())
        except _REFUSED as error:
            raise UserError(
                f"{sender} cannot connect to {receiver.name} at {address!r} ({error}): open the "
                "TCP ports between the nodes or set engine.transport=object_store"
            ) from error
        self._socket = _socket_of(connection)

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
        if _STOPPED in answers:
            raise StoppedError
        self._under_way -= len(answers)

    def close(self) -> None:
        """End the connection, also under a waiting `send`; to the receiver this actor is gone."""
        with suppress(OSError):  # the other end was faster
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


class Receiver:
    """The receiving end of all direct channels to one actor; delivers to its mailbox."""

    def __init__(
        self,
        name: str,
        mailbox: Mailbox,
        device: torch.device,
        secret: bytes,
        *,
        node: str,
        host: str | None,
    ) -> None:
        """Listen.

        Args:
            device: where the messages' tensors are wanted.
            host: this node's address, to be reached from others; None: from this node only.
        """
        self._mailbox, self._device = mailbox, device
        self._answering: list[socket.socket] = []
        self._open: list[socket.socket] = []
        self._closed = False
        near = sys.platform == "linux"  # its sockets without a file leave nothing behind
        path = f"\0blocklocal-{uuid.uuid4()}" if near else ""
        self._secret, port, servers = secret, 0, []
        if near:
            servers.append(socket.socket(socket.AF_UNIX))
            servers[-1].bind(path)
            servers[-1].listen(_BACKLOG)
        if host is not None or not near:
            host = host or "127.0.0.1"
            servers.append(socket.create_server((host, 0), backlog=_BACKLOG))
            port = int(servers[-1].getsockname()[1])
        self.endpoint = Endpoint(name, node, path, host or "", port)
        for server in servers:
            self._open.append(server)
            _start(self._accept, server)
        mailbox.when_failed(self._stop_senders)

    def close(self) -> None:
        """Take no more connections and messages; senders see their connections end."""
        self._closed = True
        for sock in self._open:
            with suppress(OSError):  # ended already
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; closing does not
            sock.close()

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                sock, _ = server.accept()
            except OSError as error:  # closed, or no file descriptors left, say
                self._mailbox.fail(error)
                return
            # A thread each: a stranger who says nothing must not keep the others out.
            _start(self._welcome, sock)

    def _welcome(self, sock: socket.socket) -> None:
        connection = _as_connection(sock)
        try:
            deliver_challenge(connection, self._secret)
            answer_challenge(connection, self._secret)
            sender = connection.recv_bytes(_LONGEST_NAME).decode()
            window = int(connection.recv_bytes(_LONGEST_NAME))
        except _REFUSED:
            connection.close()  # a stranger, or one who gave up
            return
        self._read(_socket_of(connection), sender, window)

    def _read(self, sock: socket.socket, sender: str, window: int) -> None:
        group, untold = lowest_room(window), 0

        def taken() -> None:
            nonlocal untold
            untold += 1
            if untold == group:
                untold = 0
                # A sender that has gone is the reader's matter: it tells who waits for more.
                with suppress(ConnectionError):
                    sock.sendall(_TAKEN * group)

        self._open.append(sock)
        if self._closed:
            sock.close()
        if window:
            self._answering.append(sock)
        if self._mailbox.failed:
            self._stop_senders()
        try:
            reader = frames.Reader(sock)
            while (message := reader.read()) is not None:
                key, arrays = message
                content = wire.decode(arrays, self._device)
                self._mailbox.put(key, content, taken if window else None)
            self._mailbox.fail(PeerLostError(sender))
        except OSError:
            self._mailbox.fail(PeerLostError(sender))
        except Exception as error:
            if self._closed:
                return
            self._mailbox.fail(error)  # the program waits for this message

    def _stop_senders(self) -> None:
        """Free those who wait for room: their messages will not be taken."""
        for sock in self._answering:
            with suppress(OSError):  # it has gone already
                sock.sendall(_STOPPED)


def _start(target: object, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]


def _connection_to(address: str | tuple[str, int]) -> Connection:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.settimeout(_GREETING_SECONDS)
    sock.connect(address)
    sock.settimeout(None)
    return _as_connection(sock)


def _as_connection(sock: socket.socket) -> Connection:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", _GREETING_SECONDS, 0))
    return Connection(sock.detach())


def _socket_of(connection: Connection) -> socket.socket:
    """The authenticated connection as a socket: it reads into given memory, without a copy."""
    sock = socket.socket(fileno=os.dup(connection.fileno()))
    connection.close()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))
    # The kernel grants what the machine allows: a message that fits in leaves its sender at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock
