"""The receiving end of direct channels: reads messages off sockets into a mailbox."""

from __future__ import annotations

import socket
import sys
import threading
import uuid
from contextlib import suppress

import torch

from actors import frames, wire
from actors.door import Door
from actors.greeting import Caller
from actors.mailbox import Mailbox
from actors.sockets import FAREWELL, STOPPED, TAKEN, Endpoint, PeerLostError, prepare
from actors.transport import lowest_room

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
        self._guard = threading.Lock()  # of the next three
        self._answering, self._open = set[socket.socket](), set[socket.socket]()
        self._closed = False
        near = sys.platform == "linux"  # its sockets without a file leave nothing behind
        path = f"\0blocklocal-{uuid.uuid4()}" if near else ""
        port, servers = 0, []
        if near:
            servers.append(socket.socket(socket.AF_UNIX))
            servers[-1].bind(path)
            servers[-1].listen(_BACKLOG)
        if host is not None or not near:
            host = host or "127.0.0.1"
            servers.append(socket.create_server((host, 0), backlog=_BACKLOG))
            port = int(servers[-1].getsockname()[1])
        self.endpoint = Endpoint(name, node, path, host or "", port)
        self._door = Door(servers, secret, self._welcome, mailbox.fail)
        mailbox.when_failed(self._stop_senders)

    def close(self) -> None:
        """Take no more connections and messages; senders see their connections end."""
        self._door.close()
        with self._guard:
            self._closed, connected = True, [*self._open]
        for sock in connected:
            with suppress(OSError):  # ended already
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads; closing does not
            sock.close()

    def _welcome(self, sock: socket.socket, caller: Caller) -> None:
        """Read what a sender sends, in a thread of its own."""
        with self._guard:
            if self._closed:
                sock.close()
                return
            self._open.add(sock)
            if caller.window:
                self._answering.add(sock)
        threading.Thread(target=self._read, args=(sock, *caller), daemon=True).start()

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

        if self._mailbox.failed:
            self._stop_senders()
        try:
            prepare(sock)
            reader = frames.Reader(sock)
            while (message := reader.read()) is not None:
                key, arrays = message
                if key == FAREWELL:
                    self._let_go(sock)  # which the sender waits for
                    return
                content = wire.decode(arrays, self._device)
                self._mailbox.put(key, content, taken if window else None)
            self._lost(sock, sender)
        except OSError:
            self._lost(sock, sender)
        except Exception as error:
            if self._closed:
                return
            self._mailbox.fail(error)  # the program waits for this message

    def _lost(self, sock: socket.socket, sender: str) -> None:
        self._mailbox.fail(PeerLostError(sender))
        self._let_go(sock)

    def _let_go(self, sock: socket.socket) -> None:
        with self._guard:
            self._open.discard(sock)
            self._answering.discard(sock)
        sock.close()

    def _stop_senders(self) -> None:
        """Free those who wait for room: their messages will not be taken."""
        with self._guard:
            waiting = [*self._answering]
        for sock in waiting:
            with suppress(OSError):  # it has gone already
                sock.sendall(STOPPED)
