"""How the ends of a direct channel make sure of one another: three words, none of them the secret.

    receiver   a challenge, 32 random bytes
    sender     a challenge of its own, its proof, its window and its name
    receiver   its proof; zeros to who does not know the secret

A proof is the HMAC of both challenges and of what the sender says of itself, for the role of who
gives it: nobody can use what the other end has said.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import time
from typing import NamedTuple

CHALLENGE = PROOF = 32  # bytes
LONGEST_NAME = 1024  # bytes
GREETING_SECONDS = 10.0
"""For all of it, on either side; who is pushed out by strangers knocks again until then."""
REFUSAL = bytes(PROOF)
HELLO = struct.Struct(f"!{CHALLENGE}s{PROOF}sIH")  # challenge, proof, window, length of the name
_SENDER, _RECEIVER = b"sender", b"receiver"
_FIRST_PAUSE, _LONGEST_PAUSE = 0.01, 0.5  # seconds between knocks


class GreetingError(ConnectionError):
    """The other end does not know the secret of this run."""


class Caller(NamedTuple):
    """What a sender says of itself.

    Attributes:
        name: empty: it only wanted to know whether it is let in.
        window: most messages under way; 0 where it does not wait for answers.
    """

    name: str
    window: int


class Knock:
    """The receiver's side of a greeting: bytes as they come, whenever they come.

    Attributes:
        challenge: what the receiver says first.
        missing: how many bytes the sender has still to say; none of what follows its greeting.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret, self._said = secret, bytearray()
        self.challenge = os.urandom(CHALLENGE)
        self.missing = HELLO.size

    def hear(self, data: bytes) -> None:
        """Take what the sender has said.

        Raises:
            GreetingError: for a name that is too long.
        """
        self._said += data
        self.missing -= len(data)
        if len(self._said) == HELLO.size:
            length = HELLO.unpack(self._said)[-1]
            if length > LONGEST_NAME:
                raise GreetingError(f"a name of {length} bytes")
            self.missing = length

    def caller(self) -> tuple[Caller, bytes]:
        """Who it is, and the word that answers it.

        Raises:
            GreetingError: when it does not know the secret.
        """
        theirs, proof, window, _ = HELLO.unpack(self._said[: HELLO.size])
        name = bytes(self._said[HELLO.size :])
        expected = _proof(self._secret, _SENDER, self.challenge, theirs, window, name)
        if not hmac.compare_digest(proof, expected):
            raise GreetingError("a wrong proof")
        answer = _proof(self._secret, _RECEIVER, self.challenge, theirs, window, name)
        return Caller(name.decode(), window), answer


def greet(address: str | tuple[str, int], caller: Caller, secret: bytes) -> socket.socket:
    """Connect to a receiver, and make sure of it.

    Raises:
        OSError: when nobody answers there, or who does not know the secret (`GreetingError`).
    """
    until, pause = time.monotonic() + GREETING_SECONDS, _FIRST_PAUSE
    while True:
        try:
            return _attempt(address, caller, secret, until)
        except (BlockingIOError, ConnectionResetError, BrokenPipeError):
            # Too many knock there just now: strangers, perhaps, whom the receiver sends away.
            if time.monotonic() + pause >= until:
                raise
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _attempt(
    address: str | tuple[str, int], caller: Caller, secret: bytes, until: float
) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    try:
        _limit(sock, until)
        sock.connect(address)
        theirs, mine = _receive(sock, CHALLENGE, until), os.urandom(CHALLENGE)
        window, name = caller.window, caller.name.encode()
        proof = _proof(secret, _SENDER, theirs, mine, window, name)
        _limit(sock, until)
        sock.sendall(HELLO.pack(mine, proof, window, len(name)) + name)
        expected = _proof(secret, _RECEIVER, theirs, mine, window, name)
        if not hmac.compare_digest(_receive(sock, PROOF, until), expected):
            raise GreetingError("it is of another run")
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _receive(sock: socket.socket, count: int, until: float) -> bytes:
    found = bytearray()
    while len(found) < count:
        _limit(sock, until)
        data = sock.recv(count - len(found))
        if not data:
            raise ConnectionResetError("it closed the connection")
        found += data
    return bytes(found)


def _limit(sock: socket.socket, until: float) -> None:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    sock.settimeout(left)


def _proof(
    secret: bytes, role: bytes, first: bytes, second: bytes, window: int, name: bytes
) -> bytes:
    said = role + first + second + struct.pack("!I", window) + name
    return hmac.digest(secret, said, "sha256")
