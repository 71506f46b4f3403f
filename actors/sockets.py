"""What both ends of a direct channel share: the words they say, and sockets as they like them."""

from __future__ import annotations

import socket
from typing import NamedTuple

from learning.errors import UserError
from learning.messages import Key

TAKEN, STOPPED = b"t", b"s"
FAREWELL = Key("farewell", 0)
"""In place of a message: the end of the connection that comes then is no loss."""
_SEND_BUFFER = 8 * 2**20  # bytes


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


class UnreachableError(UserError):
    """An actor cannot be connected to.

    Args:
        peer: its name.
        text: for the user.
    """

    def __init__(self, peer: str, text: str) -> None:
        super().__init__(peer, text)
        self.peer, self.text = peer, text

    def __str__(self) -> str:
        return self.text


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


def prepare(sock: socket.socket) -> None:
    """Make a socket ready for messages, once its ends are sure of one another."""
    # The kernel grants what the machine allows: a message that fits in leaves its sender at once.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
