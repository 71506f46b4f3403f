"""The receiving end of direct channels: reads messages off sockets into a mailbox."""

from __future__ import annotations

import socket
import sys
import threading
import uuid
from contextlib import suppress
from multiprocessing.connection import answer_challenge, deliver_challenge

import torch

from actors import frames, wire
from actors.mailbox import Mailbox
from actors.sockets import (
    FAREWELL,
    REFUSED,
    STOPPED,
    TAKEN,
    Endpoint,
    PeerLostError,
    as_connection,
    socket_of,
)
from actors.transport import lowest_room

_LONGEST_NAME = 1024  # bytes
_BACKLOG = 128  # who may knock at once


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
        connection = as_connection(sock)
        try:
            deliver_challenge(connection, self._secret)
            answer_challenge(connection, self._secret)
            sender = connection.recv_bytes(_LONGEST_NAME).decode()
            window = int(connection.recv_bytes(_LONGEST_NAME))
        except REFUSED:
            connection.close()  # a stranger, or one who gave up
            return
        self._read(socket_of(connection), sender, window)

    def _read(self, sock: socket.socket, sender: str, window: int) -> None:
        group, untold = lowest_room(window), 0

        def taken() -> None:
            nonlocal untold
            untold += 1
            if untold == group:
                untold = 0
                # A sender that has gone is the reader's matter: it tells who waits for more.
                with suppress(OSError):
                    sock.sendall(TAKEN * group)

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
                if key == FAREWELL:
                    self._let_go(sock)  # which the sender waits for
                    return
                content = wire.decode(arrays, self._device)
                self._mailbox.put(key, content, taken if window else None)
            self._mailbox.fail(PeerLostError(sender))
        except OSError:
            self._mailbox.fail(PeerLostError(sender))
        except Exception as error:
            if self._closed:
                return
            self._mailbox.fail(error)  # the program waits for this message

    def _let_go(self, sock: socket.socket) -> None:
        for known in (self._open, self._answering):
            if sock in known:
                known.remove(sock)
        sock.close()

    def _stop_senders(self) -> None:
        """Free those who wait for room: their messages will not be taken."""
        for sock in self._answering:
            with suppress(OSError):  # it has gone already
                sock.sendall(STOPPED)


def _start(target: object, *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True).start()  # type: ignore[arg-type]
