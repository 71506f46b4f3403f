"""Runs the programs of all actors in one thread, with windows, in any order that they allow.

The executors are the real ones. Learners are stand-ins that check what reaches them; mailboxes
and channels raise `Blocked` where the real ones wait. A blocked operation is tried again later:
what it had taken stays taken and what it had sent stays sent, as if it had waited.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, cast

from actors.execution import Executor
from actors.executors import BlockExecutor, FeedbackExecutor, Source, SourceExecutor
from actors.mailbox import Mailbox
from actors.operations import Kind, Operation
from actors.transport import lowest_room
from learning.build import Program
from learning.learners.base import LearnerSettings
from learning.learners.feedback import table_step
from learning.messages import Key, Message
from learning.rules import Rule
from learning.settings import ConstantSchedule, PrecisionSettings, SGDSettings
from orchestrator.program import (
    Calendar,
    block_program,
    channels,
    feedback_program,
    source_program,
    with_batches,
)
from orchestrator.settings import SourcePlace
from tests.orchestrator.standins import FakeBlock, FakeFeedback, FakeSource

NOTHING = Calendar()


def program(rule: Rule, blocks: int, shards: int) -> Program:
    """A rule with settings that matter to nobody here."""
    learner = LearnerSettings(
        SGDSettings(), ConstantSchedule(), PrecisionSettings(), 0, 12 * shards, shards, 10
    )
    return Program(rule, learner, ((4,),) * blocks, 3)


class Blocked(Exception):  # noqa: N818
    """The operation would wait now."""


class Box(Mailbox):
    """A mailbox that refuses instead of waiting, and remembers what this operation took."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[Key, Message] = {}
        self.received: Counter[Key] = Counter()
        self.most: Counter[str] = Counter()
        self._count: Counter[str] = Counter()

    def put(self, key: Key, message: Message, taken: Callable[[], None] | None = None) -> None:
        super().put(key, message, taken)
        self._count[key.what] += 1
        self.most[key.what] = max(self.most[key.what], self._count[key.what])

    def take(self, key: Key) -> Message:
        if key not in self.held:
            if key not in self._messages:
                raise Blocked(key)
            self.held[key] = super().take(key)
            self._count[key.what] -= 1
            self.received[key] += 1
        return self.held[key]

    def waiting(self) -> set[Key]:
        """What is here and not taken."""
        return set(self._messages)


class Pipe:
    """A channel into another actor's mailbox, with the window of `ObjectStoreChannel`."""

    blocked_ns, is_blocked = 0, False

    def __init__(self, receiver: Box, window: int | None) -> None:
        self.receiver, self.window = receiver, window
        self.sent: Counter[Key] = Counter()
        self.most = 0
        self.done: set[Key] = set()
        self._under_way: deque[Key] = deque()
        self._here: set[Key] = set()

    def leave(self) -> None:
        """Nobody leaves."""

    def close(self) -> None:
        raise AssertionError("a program does not close its channels")

    def send(self, key: Key, message: Message) -> int:
        if key in self.done:
            return 0
        if self.window is not None:
            if len(self._under_way) >= self.window:
                oldest = list(islice(self._under_way, lowest_room(self.window)))
                if self.receiver.waiting().intersection(oldest):
                    raise Blocked(key)
                for _ in oldest:
                    self._under_way.popleft()
            self._under_way.append(key)
        self.done.add(key)
        self.sent[key] += 1
        self.receiver.put(key, message)
        self._here = (self._here | {key}) & self.receiver.waiting()
        self.most = max(self.most, len(self._here))
        return 0


class Actor:
    """An executor, its program and how far it is."""

    def __init__(self, name: str, executor: Executor, operations: Sequence[Operation]) -> None:
        self.name, self.executor, self.operations = name, executor, operations
        self.box = cast(Box, executor.mailbox)
        self.position = 0

    def finished(self) -> bool:
        return self.position == len(self.operations)

    def try_one(self) -> bool:
        """Run the next operation; False when it must wait."""
        try:
            self.executor.execute(self.operations[self.position])
        except Blocked:
            return False
        self.position += 1
        self.box.held.clear()
        for pipe in self.executor.channels.values():
            cast(Pipe, pipe).done.clear()
        return True


class Simulation:
    """All actors of a program, wired as `RayEngine` wires them."""

    def __init__(
        self,
        program: Program,
        steps: int,
        calendar: Calendar,
        window: int,
        mixing: int = 0,
        source: SourcePlace = "actor",
    ) -> None:
        self.program, self.steps, self.window = program, steps, window
        self.blocks = [FakeBlock(program, k, mixing) for k in range(1, program.blocks + 1)]
        modules = range(1, program.feedback_modules + 1)
        self.feedback = [FakeFeedback(program, k) for k in modules]
        span, delay = range(steps), program.feedback_delay
        batches = Source(cast(Any, FakeSource()), 1)
        self.source = Actor(
            "source", SourceExecutor(batches, Box(), 1), source_program(program, calendar, span)
        )
        self.block_actors = [
            Actor(
                f"block{b.index}",
                BlockExecutor(cast(Any, b), delay, Box(), 1),
                block_program(program, b.index, calendar, span),
            )
            for b in self.blocks
        ]
        self.feedback_actors = [
            Actor(
                f"feedback{k}",
                FeedbackExecutor(cast(Any, f), top=f.top, mailbox=Box(), threads=1),
                feedback_program(program, calendar, span),
            )
            for k, f in zip(modules, self.feedback, strict=True)
        ]
        self.actors = [*self.block_actors, *self.feedback_actors]
        if source == "actor":
            self.actors.insert(0, self.source)
        else:
            first = self.block_actors[0]
            cast(BlockExecutor, first.executor).source = batches
            first.operations = with_batches(first.operations)
        self._connect(window * program.settings.shards)

    def _connect(self, messages: int) -> None:
        boxes = {actor.name: actor.box for actor in self.actors}
        for actor in self.actors:
            windows = channels(self.program, actor.name, messages)
            actor.executor.channels = {n: Pipe(boxes[n], w) for n, w in windows.items()}

    def pipes(self) -> dict[tuple[str, str], Pipe]:
        """All channels by sender and receiver."""
        return {
            (actor.name, name): cast(Pipe, pipe)
            for actor in self.actors
            for name, pipe in actor.executor.channels.items()
        }

    def run(
        self,
        seed: int = 0,
        prefer: Callable[[Actor], float] | None = None,
        watch: Callable[[Simulation], None] | None = None,
    ) -> None:
        """Run all programs to their ends, always one operation of a random (or preferred) actor.

        Raises:
            AssertionError: when nobody can go on: a deadlock.
        """
        draw = random.Random(seed)
        while unfinished := [actor for actor in self.actors if not actor.finished()]:
            draw.shuffle(unfinished)
            if prefer is not None:
                unfinished.sort(key=prefer, reverse=True)
            if not any(actor.try_one() for actor in unfinished):
                stuck = {a.name: a.operations[a.position] for a in unfinished}
                raise AssertionError(f"deadlock: {stuck}")
            if watch is not None:
                watch(self)

    def unused(self, actor: Actor) -> set[Key]:
        """What delays leave for later steps: tables, weights and gradients."""
        made, after = self.program, range(self.steps, 2 * self.steps + 20)
        unused: set[Key] = set()
        if actor not in self.block_actors:
            return unused
        k = self.block_actors.index(actor) + 1
        if k <= made.feedback_modules:
            used = table_step(self.steps - 1, made.feedback_delay)
            unused |= {Key("table", step) for step in range(used + 1, self.steps)}
        reading = made.reading(k)
        if reading is not None:
            later = {reading.step_read(step) for step in after} - {None, 0}
            unused |= {
                Key("weights", step, 0, reading.publisher)
                for step in later
                if step is not None and step < self.steps
            }
        own, above = (made.rule.credit.delay(j, made.blocks) for j in (k, k + 1))
        if own:
            come = range(max(0, self.steps - own), self.steps - above)
            unused |= {
                Key("g", step, shard, made.blocks)
                for step in come
                for shard in range(made.settings.shards)
            }
        return unused


def kinds(operations: Sequence[Operation]) -> str:
    """A program as text: `F0 L0 F1 L1 U`."""
    bare = (Kind.UPDATE, Kind.FEEDBACK_UPDATE, Kind.TABLE, Kind.SNAPSHOT, Kind.TALLY)
    words = []
    for op in operations:
        mark = op.kind.value if op.kind is not Kind.BATCH else "X"
        words.append(mark if op.kind in bare else f"{mark}{op.shard}")
    return " ".join(words)
