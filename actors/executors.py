"""What each kind of actor does for an operation of its program."""

from __future__ import annotations

from typing import Generic, TypeVar

from torch import Tensor

from actors import wire
from actors.execution import Executor
from actors.mailbox import Mailbox
from actors.operations import Kind, Operation
from actors.wire import copied, detach_state
from learning.data import Batches
from learning.learners.block import BlockLearner
from learning.learners.feedback import FeedbackLearner, table_step
from learning.messages import Key, Message, Post, block_name, outgoing

LANE = "lane"
"""The channel to this actor's twin in lane n is `lane<n>`."""

AnyLearner = TypeVar("AnyLearner", BlockLearner, FeedbackLearner)


def _sent(name: str) -> bool:
    return name.startswith("sent.")


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
        if op.kind is Kind.LEAVE:
            self.leave()
        else:
            self.send([self.source.post(op)])


class LearnerExecutor(Executor, Generic[AnyLearner]):
    """What all do who learn: updates with the other lanes, states that come and go.

    Args:
        lane: number of the lane that this actor is in.
    """

    def __init__(self, learner: AnyLearner, mailbox: Mailbox, threads: int, lane: int) -> None:
        super().__init__(mailbox, threads)
        self.learner, self.lane = learner, lane
        self.finished = -1  # the step of the last update

    def update(self, step: int) -> None:
        """Update with what the shards of all lanes come to: every lane does the same.

        Where lanes learn apart each updates with its own, and all take the outer step that is due.
        """
        learner, outer = self.learner, self.learner.outer
        lanes = sorted(int(n.removeprefix(LANE)) for n in self.channels if n.startswith(LANE))
        if lanes and outer is None:
            metrics = learner.update(step, self._exchanged(step, learner.partial(), lanes))
        else:
            metrics = learner.update(step)
        if outer is not None and outer.due(step):
            outer.step(self._exchanged(step, outer.partial(), lanes))
        self.report.steps[step] = metrics
        self.finished = step

    def _exchanged(self, step: int, own: Message, others: list[int]) -> list[Message]:
        """What all lanes tell one another, in the order of their numbers.

        Sending copies, so `own` may be written to afterwards.
        """
        key = Key("partial", step, origin=self.lane)
        self.send(Post(f"{LANE}{n}", key, own) for n in others)
        told = {n: self.mailbox.take(Key("partial", step, origin=n)) for n in others}
        told[self.lane] = own
        return [told[n] for n in sorted(told)]

    def execute(self, op: Operation) -> None:
        """Execute what blocks and feedback modules have in common."""
        learner, step = self.learner, op.step
        if op.kind is Kind.SNAPSHOT:
            self.report.snapshots[step] = copied(learner.state_dict())
        elif op.kind is Kind.HAND_OVER:
            state = {n: outgoing(t) for n, t in learner.state_dict().items()}
            self.send([Post(op.to, Key("state", step), state)])
        elif op.kind is Kind.JOIN:
            self.take(self.mailbox.take(Key("state", step)))
            self.finished = step - 1
        elif op.kind is Kind.RESEND:
            self.send(post for post in learner.in_flight.from_step(step) if post.to == op.to)
        elif op.kind is Kind.LEAVE:
            self.leave()
        else:
            raise AssertionError(op)

    def take(self, state: dict[str, Tensor]) -> None:
        """Go on from a state; what was under way is sent by whoever connects this actor."""
        self.learner.load_state_dict(state)

    def load(self, state: dict[str, Tensor], step: int) -> None:
        """Load a snapshot, and send again what was under way; training goes on at `step`."""
        self.take(state)
        self.finished = step - 1
        self.send(self.learner.in_flight.from_step(step))

    def state(self) -> dict[str, Tensor]:
        """A copy of what is learnt, without what is under way."""
        return {n: t for n, t in detach_state(self.learner.state_dict()).items() if not _sent(n)}

    def take_learnt(self, state: dict[str, Tensor], finished: int) -> None:
        """Go on from a state, without what was under way.

        Args:
            finished: the step of the last update that is in it.
        """
        self.take({name: tensor for name, tensor in state.items() if not _sent(name)})
        self.finished = finished


class BlockExecutor(LearnerExecutor[BlockLearner]):
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
        lane: int = 1,
    ) -> None:
        super().__init__(learner, mailbox, threads, lane)
        self.delay, self.source = delay, source
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
            self.update(step)
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
        else:
            super().execute(op)

    def take(self, state: dict[str, Tensor]) -> None:
        self._table = (-1, None)
        super().take(state)

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


class FeedbackExecutor(LearnerExecutor[FeedbackLearner]):
    """Runs one feedback module's operations on its learner."""

    def __init__(
        self, learner: FeedbackLearner, *, top: bool, mailbox: Mailbox, threads: int, lane: int = 1
    ) -> None:
        super().__init__(learner, mailbox, threads, lane)
        self.top = top

    def execute(self, op: Operation) -> None:
        learner, step = self.learner, op.step
        if op.kind is Kind.TABLE:
            upstream = None if self.top else self.mailbox.take(Key("raw", step))
            self.send(learner.forward(step, upstream))
        elif op.kind is Kind.READOUT:
            readout = self.mailbox.take(Key("readout", step, op.shard))
            learner.receive(step, op.shard, readout)
        elif op.kind is Kind.FEEDBACK_UPDATE:
            self.update(step)
        else:
            super().execute(op)
