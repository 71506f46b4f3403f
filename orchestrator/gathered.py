"""All actors of a program in this process: their learners and executors, wired without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from actors.carrying import carried_here
from actors.execution import Executor
from actors.executors import BlockExecutor, FeedbackExecutor, Source, SourceExecutor
from actors.mailbox import Mailbox
from learning.build import Program, build_block, build_feedback
from learning.data import Batches
from learning.learners.block import BlockLearner
from learning.learners.feedback import FeedbackLearner
from learning.messages import Key, Message, block_name, feedback_name, message_bytes
from learning.units import Unit
from orchestrator.dependencies import SOURCE

Learner = BlockLearner | FeedbackLearner


class Sent(NamedTuple):
    """A message that one operation sends.

    Attributes:
        to: the receiver's name, `block2` or `feedback1`.
        what: `Key.what` of the message: `x`, `g`, `table`, `raw`, `readout`, `weights`.
        size: bytes.
    """

    to: str
    what: str
    size: int


def make_learners(
    program: Program, blocks: Sequence[Sequence[Unit]], device: torch.device
) -> dict[str, Learner]:
    """The learners of a program by name, around copies of its units."""
    copies = [carried_here(block) for block in blocks]
    learners: dict[str, Learner] = {}
    for k, units in enumerate(copies, start=1):
        later = [carried_here(b) for b in blocks[k:]] if program.rule.looks_ahead else ()
        learners[block_name(k)] = build_block(program, k, units, device, later)
    for k in range(1, program.feedback_modules + 1):
        learners[feedback_name(k)] = build_feedback(program, k, device)
    return learners


def make_executors(
    program: Program,
    learners: Mapping[str, Learner],
    batches: Batches,
    threads: int,
) -> dict[str, Executor]:
    """The executors of all actors by name, with channels that deliver at once."""
    executors: dict[str, Executor] = {SOURCE: SourceExecutor(Source(batches, 1), _Box(), threads)}
    for name, learner in learners.items():
        if isinstance(learner, BlockLearner):
            executors[name] = BlockExecutor(learner, program.feedback_delay, _Box(), threads)
        else:
            top = learner.index == program.feedback_modules or not program.feedback_chain
            executors[name] = FeedbackExecutor(learner, top=top, mailbox=_Box(), threads=threads)
    for name, executor in executors.items():
        executor.channels = {to: Pipe(to, executors[to].mailbox) for to in program.receivers(name)}
    return executors


class _Box(Mailbox):
    """A mailbox in which everything must be by the time it is asked for."""

    def take(self, key: Key) -> Message:
        assert key in self._messages, f"{key} is taken before it was sent"
        return super().take(key)


class Pipe:
    """A channel into a mailbox of this process, which remembers what it carried."""

    blocked_ns, is_blocked = 0, False

    def __init__(self, to: str, box: Mailbox) -> None:
        self._to, self._box = to, box
        self.carried: list[Sent] = []

    def send(self, key: Key, message: Message) -> int:
        """Deliver at once."""
        size = message_bytes(message)
        self.carried.append(Sent(self._to, key.what, size))
        self._box.put(key, message)
        return size

    def leave(self) -> None:
        """Nobody leaves."""

    def close(self) -> None:
        """There is nothing to let go of."""
