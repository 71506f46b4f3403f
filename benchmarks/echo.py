"""Two actors that only exchange messages, through the mailboxes and channels of the engine."""

from __future__ import annotations

import torch

from actors.execution import Executor
from actors.mailbox import Mailbox
from actors.operations import Kind, Operation
from actors.shell import Shell
from learning.messages import Key, Post

WINDOW = 3  # messages under way, as many as the engine's default of steps
MAIL_THREADS = WINDOW + 4
FLOAT = 4  # bytes

# What the kinds of operation mean here; an operation's `shard` is the size in bytes.
_PING, _SEND, _ANSWER, _TAKE = Kind.FORWARD, Kind.BATCH, Kind.GRADIENT, Kind.READ


def pings(size: int, count: int) -> list[Operation]:
    """The near actor's program: send, and wait for the answer."""
    return [Operation(_PING, i, size) for i in range(count)]


def sends(size: int, count: int) -> list[Operation]:
    """The near actor's program: send."""
    return [Operation(_SEND, i, size) for i in range(count)]


def takes(size: int, count: int, *, answer: bool) -> list[Operation]:
    """The far actor's program: take and read, and with `answer` send as much back."""
    return [Operation(_ANSWER if answer else _TAKE, i, size) for i in range(count)]


class Echo(Executor):
    """Executes these programs; `near` sends to `far` and `far` answers."""

    def __init__(self) -> None:
        super().__init__(Mailbox(), threads=1)
        self._outgoing = torch.empty(0)

    def execute(self, op: Operation) -> None:
        key = Key("x", op.step, op.shard)
        if op.kind in (_PING, _SEND):
            self._send("far", key)
        if op.kind is not _SEND:
            read(self.mailbox.take(key)["x"])
        if op.kind is _ANSWER:
            self._send("near", key)

    def _send(self, to: str, key: Key) -> None:
        if self._outgoing.nbytes != key.shard:
            self._outgoing = torch.ones(key.shard // FLOAT)
        self.send([Post(to, key, {"x": self._outgoing})])


class EchoShell(Shell):
    """The actor around an `Echo`."""

    def __init__(self) -> None:
        super().__init__()
        self._begin(1, Echo())


def read(x: torch.Tensor) -> None:
    """Read a received message; its numbers are ones.

    Raises:
        RuntimeError: when they are not.
    """
    total = float(x.sum())
    if total != x.numel():
        raise RuntimeError(f"a message of {x.numel()} ones arrived with the sum {total}")
