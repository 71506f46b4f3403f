"""A receiver and channels to it, over a Unix socket and over TCP, for tests."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from actors.direct import DirectChannel
from actors.receiver import Receiver
from tests.actors.channels import CPU, SECRET, Told


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
