"""The door of an actor's direct channels: one thread greets all who knock.

Whoever reaches a socket may connect to it: on TCP anyone in the network, on a Unix socket without a
file any user of the machine. So nothing that a stranger does costs more than a place among few,
for a while: there is no thread for one, no memory that it may ask for, and no error of `accept`
that ends the run.
"""

from __future__ import annotations

import errno
import logging
import os
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from actors.greeting import GREETING_SECONDS, REFUSAL, Caller, GreetingError, Knock

MOST_STRANGERS = 64
"""At a time; one more, and who has waited longest has to go and may knock again."""
_AT_ONCE = 32  # accepted before those who are there are heard again
_PAUSE = 0.05  # seconds, where the machine has nothing left for a connection
_CREDENTIALS = struct.Struct("3i")  # process, user, group
_ENDED = (errno.EBADF, errno.EINVAL, errno.ENOTSOCK)  # of `accept`: it can never work again

_log = logging.getLogger(__name__)


class Door:
    """Lets in who knows the secret.

    Args:
        servers: sockets that listen; the door closes them.
        welcome: is given the socket of each that was let in, and what it says of itself; called in
            the door's thread.
        broken: is given what ended the door, other than `close`.
        clock: seconds.
    """

    def __init__(
        self,
        servers: Sequence[socket.socket],
        secret: bytes,
        welcome: Callable[[socket.socket, Caller], None],
        broken: Callable[[Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._servers, self._secret = servers, secret
        self._welcome, self._broken, self._clock = welcome, broken, clock
        self._strangers: dict[socket.socket, tuple[Knock, float]] = {}  # oldest first
        self._closed = threading.Event()
        self._short = False  # of descriptors or memory, and said so
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        for sock in (*servers, woken):
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
        self._woken = woken
        self._thread = threading.Thread(target=self._work, name="door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let nobody in any more; returns when all sockets are closed."""
        self._closed.set()
        with suppress(OSError):  # closed already
            self._wake.send(b"x")
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                for key, _ in self._selector.select(self._patience()):
                    sock = key.fileobj
                    assert isinstance(sock, socket.socket)
                    if sock in self._strangers:
                        self._hear(sock)
                    elif sock in self._servers:
                        self._accept(sock)
        except Exception as error:
            self._broken(error)
        finally:
            for sock in [*self._strangers]:
                self._send_away(sock)
            self._selector.close()
            for sock in (*self._servers, self._wake, self._woken):
                sock.close()

    def _patience(self) -> float | None:
        """Seconds until someone has had enough time; sends away who has."""
        for sock, (_, until) in [*self._strangers.items()]:
            if (left := until - self._clock()) > 0:
                return left
            self._send_away(sock)
        return None

    def _accept(self, server: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                sock, _ = server.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _ENDED:
                    raise
                self._wait(error)
                return
            self._short = False
            try:
                self._receive(sock)
            except OSError:  # gone already
                sock.close()

    def _wait(self, error: OSError) -> None:
        """Go on after an error of `accept`: one connection's own, or a lack that may pass."""
        if error.errno == errno.ECONNABORTED:
            return
        if not self._short:
            self._short = True
            _log.warning("cannot take a connection now (%s): trying again", error.strerror)
        for sock in [*self._strangers][:1]:
            self._send_away(sock)
        self._closed.wait(_PAUSE)

    def _receive(self, sock: socket.socket) -> None:
        """Begin a greeting, if it is one of those who may."""
        if sock.family == socket.AF_UNIX and not _is_own(sock):
            sock.close()
            return
        sock.setblocking(False)
        knock, until = Knock(self._secret), self._clock() + GREETING_SECONDS
        if sock.send(knock.challenge) != len(knock.challenge):  # a new socket has room for it
            sock.close()
            return
        while len(self._strangers) >= MOST_STRANGERS:
            self._send_away(next(iter(self._strangers)))
        self._selector.register(sock, selectors.EVENT_READ)
        self._strangers[sock] = knock, until

    def _hear(self, sock: socket.socket) -> None:
        knock, _ = self._strangers[sock]
        try:
            data = sock.recv(knock.missing)  # and nothing of what follows
            knock.hear(data)
            if data and knock.missing:
                return
            if data:
                caller, answer = knock.caller()
                sock.sendall(answer)
                self._let_in(sock, caller)
                return
        except BlockingIOError:  # it was not ready after all
            return
        except (GreetingError, UnicodeDecodeError):
            with suppress(OSError):  # gone already
                sock.send(REFUSAL)
        except OSError:  # gone
            pass
        self._send_away(sock)

    def _let_in(self, sock: socket.socket, caller: Caller) -> None:
        if not caller.name:
            self._send_away(sock)
            return
        self._selector.unregister(sock)
        del self._strangers[sock]
        sock.setblocking(True)
        self._welcome(sock, caller)

    def _send_away(self, sock: socket.socket) -> None:
        self._selector.unregister(sock)
        del self._strangers[sock]
        sock.close()


def _is_own(sock: socket.socket) -> bool:
    """Whether the other end of a Unix socket is a process of this user; the kernel says so."""
    said = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(said)[1] == os.geteuid()
