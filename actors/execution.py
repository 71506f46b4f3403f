"""Executing a program: each actor runs its operations in one fixed order. Plain Python, no Ray."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from actors import wire
from actors.mailbox import Mailbox, StoppedError
from actors.operations import Doing, Kind, Operation, Report, Span
from actors.transport import Channel
from actors.wire import detach_state
from learning.data import Batches
from learning.errors import UserError
from learning.learners.block import BlockLearner
from learning.learners.feedback import FeedbackLearner, table_step
from learning.messages import Key, Message, Post, block_name


class Executor(ABC):
    """Runs chunks of one actor's program and reports on them."""

    def __init__(self, mailbox: Mailbox, threads: int) -> None:
        self.mailbox, self.threads = mailbox, threads
        self.channels: Mapping[str, Channel] = {}  # by the receiver's name
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

    def abandon(self) -> None:
        """End the program, wherever it waits; nothing is sent or received any more."""
        self.mailbox.fail(StoppedError())
        for channel in self.channels.values():
            channel.close()

    @abstractmethod
    def execute(self, op: Operation) -> None:
        """Execute one operation."""

    def send(self, posts: Iterable[Post]) -> None:
        """Send over this actor's channels."""
        for post in posts:
            self.report.bytes_sent += self.channels[post.to].send(post.key, post.message)


class Source:
    """Makes the batches that block 1 takes.

    Args:
        evaluation_batch: rows of a batch of an evaluation.
    """

    def __init__(self, batches: Batches, evaluation_batch: int) -> None:
        self.batches, self.evaluation_batch = batches, evaluation_batch

    def post(self, op: Operation) -> Post:
        """The message of an operation: a shard of its step, or a batch of an evaluation."""
        if op.split:
            x, y = self.batches.evaluation_batch(op.split, op.shard, self.evaluation_batch)
            key = Key("e", op.step, op.shard, split=op.split)
        else:
            x, y = self.batches.shard(op.step, op.shard)
            key = Key("x", op.step, op.shard)
        return Post(block_name(1), key, {"x": x, "y": y})


class SourceExecutor(Executor):
    """Makes batches and sends them to block 1."""

    def __init__(self, source: Source, mailbox: Mailbox, threads: int) -> None:
        super().__init__(mailbox, threads)
        self.source = source

    def execute(self, op: Operation) -> None:
        self.send([self.source.post(op)])


class BlockExecutor(Executor):
    """Runs one block's operations on its learner.

    Args:
        delay: d: step t uses the table of step t-d.
        source: makes the batches, where block 1 does that itself.
    """

    def __init__(
        self,
        learner: BlockLearner,
        delay: int,
        mailbox: Mailbox,
        threads: int,
        source: Source | None = None,
    ) -> None:
        super().__init__(mailbox, threads)
        self.learner, self.delay, self.source = learner, delay, source
        self._table: tuple[int, Message | None] = (-1, None)

    def execute(self, op: Operation) -> None:
        learner, step, shard = self.learner, op.step, op.shard
        if op.kind is Kind.BATCH:
            assert self.source is not None
            self._deliver(self.source, op)
        elif op.kind is Kind.FORWARD:
            message = self.mailbox.take(Key("x", step, shard))
            mixes = learner.forward_needs_feedback(step)
            table = self._feedback(step) if mixes else None
            self.send(learner.forward(step, shard, message, table))
        elif op.kind is Kind.ASSESS:
            self.send(learner.assess(step, shard, self._feedback(step)))
        elif op.kind is Kind.GRADIENT:
            message = self.mailbox.take(Key("g", step, shard, op.origin))
            self.send(learner.receive(step, shard, op.origin, message))
        elif op.kind is Kind.PUBLISH:
            self.send(learner.publish(step))
        elif op.kind is Kind.READ:
            learner.read(self.mailbox.take(Key("weights", step, 0, op.origin)))
        elif op.kind is Kind.UPDATE:
            self.report.steps[step] = learner.update(step)
        elif op.kind is Kind.EVALUATE:
            if self.source is not None:
                self._deliver(self.source, op)
            message = self.mailbox.take(Key("e", step, shard, split=op.split))
            on = learner.infer(op.split, message, self._feedback(step))
            if learner.index < learner.last:
                key = Key("e", step, shard, split=op.split)
                self.send([Post(block_name(learner.index + 1), key, on)])
        elif op.kind is Kind.TALLY:
            metrics = learner.end_evaluation(op.split)
            self.report.evaluations.append((step, op.split, metrics))
        elif op.kind is Kind.SNAPSHOT:
            self.report.snapshots[step] = detach_state(learner.state_dict())
        else:
            raise AssertionError(op)

    def load(self, state: dict[str, Tensor], step: int) -> None:
        """Load a snapshot; training goes on at `step`."""
        self._table = (-1, None)
        _load(self, self.learner, state, step)

    def _deliver(self, source: Source, op: Operation) -> None:
        """Make a batch and put it where a message would lie."""
        post = source.post(op)
        self.mailbox.put(post.key, wire.place(post.message, self.learner.device))

    def _feedback(self, step: int) -> Message | None:
        if not self.learner.needs_feedback:
            return None
        wanted = table_step(step, self.delay)
        if self._table[0] != wanted:
            self._table = (wanted, self.mailbox.take(Key("table", wanted)))
        return self._table[1]


class FeedbackExecutor(Executor):
    """Runs one feedback module's operations on its learner."""

    def __init__(
        self, learner: FeedbackLearner, *, top: bool, mailbox: Mailbox, threads: int
    ) -> None:
        super().__init__(mailbox, threads)
        self.learner, self.top = learner, top

    def execute(self, op: Operation) -> None:
        learner, step = self.learner, op.step
        if op.kind is Kind.TABLE:
            upstream = None if self.top else self.mailbox.take(Key("raw", step))
            self.send(learner.forward(step, upstream))
        elif op.kind is Kind.READOUT:
            readout = self.mailbox.take(Key("readout", step, op.shard))
            learner.receive(step, op.shard, readout)
        elif op.kind is Kind.FEEDBACK_UPDATE:
            self.report.steps[step] = learner.update(step)
        elif op.kind is Kind.SNAPSHOT:
            self.report.snapshots[step] = detach_state(learner.state_dict())
        else:
            raise AssertionError(op)

    def load(self, state: dict[str, Tensor], step: int) -> None:
        """Load a snapshot; training goes on at `step`."""
        _load(self, self.learner, state, step)


def _load(
    executor: Executor, learner: BlockLearner | FeedbackLearner, state: dict[str, Tensor], step: int
) -> None:
    """Load a learner and send again what was under way when the snapshot was taken."""
    learner.load_state_dict(state)
    executor.send(learner.in_flight.from_step(step))
