"""What each operation of a program takes and sends: the messages of `actors/executors.py`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from actors.operations import Kind, Operation
from learning.build import Program
from learning.credit import Hop
from learning.learners.feedback import table_step
from learning.learners.publishing import Publication
from learning.messages import Key, block_name, feedback_name
from orchestrator.dependencies import NOTHING_ELSE, SOURCE, Need, needs, number
from orchestrator.program import (
    block_program,
    feedback_program,
    source_program,
    with_batches,
)
from orchestrator.settings import SourcePlace


class Address(NamedTuple):
    """A message without its content."""

    to: str
    key: Key


class Routes:
    """The operations of each actor, and the messages of each operation.

    Evaluations and snapshots are left out, and so is posterior bootstrapping, under which the first
    forwards of a run read a table.

    Args:
        source: who makes the batches.
    """

    def __init__(self, program: Program, source: SourcePlace) -> None:
        self.program, self.source, self.credit = program, source, program.rule.credit
        self._steady = len(self.credit.hops()) == 1
        self._back: dict[tuple[int, int], tuple[int, ...]] = {}

    def actors(self) -> list[str]:
        """All actors: the source where it is one, blocks 1..K, feedback modules."""
        program = self.program
        blocks = [block_name(k) for k in range(1, program.blocks + 1)]
        modules = [feedback_name(k) for k in range(1, program.feedback_modules + 1)]
        return [SOURCE, *blocks, *modules] if self.source == "actor" else [*blocks, *modules]

    def operations(self, name: str, steps: range) -> list[Operation]:
        """The program of one actor."""
        program, k = self.program, number(name)
        if name == SOURCE:
            return source_program(program, NOTHING_ELSE, steps)
        if name.startswith("feedback"):
            return feedback_program(program, NOTHING_ELSE, steps)
        operations = self._of_block(k, steps)
        return with_batches(operations) if k == 1 and self.source == "block1" else operations

    def _of_block(self, k: int, steps: range) -> list[Operation]:
        program = self.program
        told = program.reading(k) or program.readings_of(k)
        if told or not isinstance(self.credit, Hop):
            return block_program(program, k, NOTHING_ELSE, steps)
        # Every step is alike, and asking the credit takes O(K) for each.
        one = block_program(program, k, NOTHING_ELSE, range(1))
        return [op._replace(step=step) for step in steps for op in one]

    def takes(self, name: str, op: Operation) -> list[Key]:
        """The messages that an operation waits for."""
        return [
            _key(need)
            for need in needs(self.program, name, op)
            if need.what != "table" or self._first_to_read(need.operation.step, op)
        ]

    def _first_to_read(self, table: int, op: Operation) -> bool:
        """Whether no earlier operation of the block took that table: it keeps the last one."""
        before = table_step(op.step - 1, self.program.feedback_delay) if op.step else None
        return op.shard == 0 and before != table

    def sends(self, name: str, op: Operation) -> Iterable[Address]:
        """The messages that an operation leaves, in the order in which they go.

        A batch that block 1 makes goes to itself: it lies where a message would.
        """
        step, shard, program = op.step, op.shard, self.program
        if op.kind is Kind.BATCH:
            yield Address(block_name(1), Key("x", step, shard))
            return
        if op.kind in (Kind.UPDATE, Kind.READ, Kind.READOUT, Kind.FEEDBACK_UPDATE):
            return
        k = number(name)
        if op.kind is Kind.FORWARD:
            if k < program.blocks:
                yield Address(block_name(k + 1), Key("x", step, shard))
        elif op.kind is Kind.ASSESS:
            yield from self._gradients(k, step, shard, k)
            if k <= program.feedback_modules:
                yield Address(feedback_name(k), Key("readout", step, shard))
        elif op.kind is Kind.GRADIENT:
            yield from self._gradients(k, step, shard, op.origin)
        elif op.kind is Kind.PUBLISH:
            for reading in program.readings_of(k):
                if Publication(reading).due(step):
                    yield Address(block_name(reading.reader), Key("weights", step, 0, k))
        elif op.kind is Kind.TABLE:
            yield Address(block_name(k), Key("table", step))
            if program.feedback_chain and k > 1:
                yield Address(feedback_name(k - 1), Key("raw", step))
        else:
            raise AssertionError(op)

    def _gradients(self, k: int, step: int, shard: int, origin: int) -> Iterator[Address]:
        program = self.program
        if self.credit.broadcast:
            if origin == k == program.blocks:
                for j in range(1, k):
                    yield Address(block_name(j), Key("g", step, shard, k))
        elif k > 1 and origin in self._passed_back(k, step):
            yield Address(block_name(k - 1), Key("g", step, shard, origin))

    def _passed_back(self, k: int, step: int) -> tuple[int, ...]:
        at = (k, 0 if self._steady else step)
        if at not in self._back:
            self._back[at] = self.credit.at(step).passed_back(k, self.program.blocks)
        return self._back[at]


def _key(need: Need) -> Key:
    """The key under which a message waits."""
    op, origin = need.operation, 0
    if need.what == "weights":
        origin = number(need.sender)
    elif need.what == "g":
        origin = op.origin or number(need.sender)
    return Key(need.what, op.step, op.shard, origin)
