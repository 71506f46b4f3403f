"""Executing a program: each actor runs its operations in one fixed order. Plain Python, no Ray."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch

from actors.mailbox import Mailbox, StoppedError
from actors.operations import Doing, Kind, Operation, Report, Span
from actors.transport import Channel
from learning.errors import UserError, named_exit
from learning.messages import Post


class Executor(ABC):
    """Runs chunks of one actor's program and reports on them."""

    def __init__(self, mailbox: Mailbox, threads: int) -> None:
        self.mailbox, self.threads = mailbox, threads
        self.channels: Mapping[str, Channel] = {}  # by the receiver's name
        self._retired: list[Channel] = []
        self.report = Report()
        self._current: tuple[Operation, int] | None = None  # and when it began, without waits
        self._longest: dict[Kind, int] = {}  # nanoseconds

    def run(self, operations: Sequence[Operation]) -> Report:
        """Execute operations in order; returns what they left behind.

        A user's error ends the chunk and is a part of the report, like all that was done before.
        """
        # Ray may run each call on another thread, and torch keeps the number a thread.
        torch.set_num_threads(self.threads)
        self.report = Report()
        try:
            for operation in operations:
                self._run_one(operation)
        except UserError as error:
            self.report.error = error
            self.mailbox.fail(StoppedError())
        except SystemExit as error:
            if hasattr(error, "ray_terminate_msg"):
                raise  # it is Ray that ends this process
            self.report.error = named_exit(error)
            self.mailbox.fail(StoppedError())
        except StoppedError:
            # The cause is another actor's; this one still reports what it has done.
            self.mailbox.fail(StoppedError())
        finally:
            self._current = None
        return self.report

    def _run_one(self, operation: Operation) -> None:
        if self.mailbox.stopped:
            raise StoppedError
        waited, blocked = self.mailbox.waited_ns, self._blocked_ns()
        started = time.time_ns()
        self._current = (operation, time.monotonic_ns() - waited - blocked)
        self.execute(operation)
        ended = time.time_ns()
        waited, blocked = self.mailbox.waited_ns - waited, self._blocked_ns() - blocked
        kind = operation.kind
        self._longest[kind] = max(self._longest.get(kind, 0), ended - started - waited - blocked)
        self.report.spans.append(
            Span(kind.value, operation.step, operation.shard, started, ended, waited, blocked)
        )

    def _blocked_ns(self) -> int:
        return sum(channel.blocked_ns for channel in self.channels.values())

    def doing(self) -> Doing:
        """What the program does now; for another thread than the program's."""
        current = self._current  # once: the program goes on
        if current is None:
            return Doing(None, 0.0, True, None)
        operation, began = current
        waits = self.mailbox.waited_ns + self._blocked_ns()
        seconds = (time.monotonic_ns() - waits - began) / 1e9
        waiting = self.mailbox.is_waiting or any(c.is_blocked for c in self.channels.values())
        longest = self._longest.get(operation.kind)
        return Doing(operation, seconds, waiting, None if longest is None else longest / 1e9)

    def connect(self, added: Mapping[str, Channel], gone: Sequence[str] = ()) -> None:
        """Add channels, in the place of any to the same name, and drop those to who is gone.

        What is dropped is closed at the next call, when all are past this step: who is at the other
        end may be behind, and would take the end of a channel for the loss of this actor.
        """
        for channel in self._retired:
            channel.close()
        dropped = {*added, *gone}
        self._retired = [c for name, c in self.channels.items() if name in dropped]
        kept = {name: c for name, c in self.channels.items() if name not in dropped}
        self.channels = {**kept, **added}

    def leave(self) -> None:
        """Say farewell to all that something is sent to."""
        for channel in self.channels.values():
            channel.leave()

    def abandon(self) -> None:
        """End the program, wherever it waits; nothing is sent or received any more."""
        self.mailbox.fail(StoppedError())
        for channel in [*self.channels.values(), *self._retired]:
            channel.close()

    @abstractmethod
    def execute(self, op: Operation) -> None:
        """Execute one operation."""

    def send(self, posts: Iterable[Post]) -> None:
        """Send over this actor's channels."""
        for post in posts:
            self.report.bytes_sent += self.channels[post.to].send(post.key, post.message)
