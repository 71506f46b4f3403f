"""Each actor's program: the operations of a chunk of steps, in the one order it executes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from actors.operations import Kind, Operation
from learning.build import Program


@dataclass(frozen=True)
class Calendar:
    """What happens after which step, besides training.

    Attributes:
        evaluations: step to the splits evaluated after it.
        snapshots: steps after which all learners are saved.
        evaluation_batches: split to its number of batches.
    """

    evaluations: dict[int, tuple[str, ...]] = field(default_factory=dict)
    snapshots: frozenset[int] = frozenset()
    evaluation_batches: dict[str, int] = field(default_factory=dict)


def source_program(program: Program, calendar: Calendar, steps: range) -> list[Operation]:
    """Batches in the order in which block 1 takes them."""
    operations: list[Operation] = []
    for step in steps:
        for shard in range(program.settings.shards):
            operations.append(Operation(Kind.BATCH, step, shard))
        operations += _evaluations(calendar, step)
    return operations


def block_program(program: Program, k: int, calendar: Calendar, steps: range) -> list[Operation]:
    """The operations of block k.

    A shard is worked on as soon as everything that reaches the block has arrived; under a local
    credit that is at once, so no shard's activations outlive it. Where a gradient comes back from
    later blocks, the rule's order says how many forwards run ahead:

        gpipe   F0 F1 F2 F3 G0 G1 G2 G3 U
        1f1b    F0 F1 G0 F2 G1 F3 G2 G3 U      (block K-1; block k runs K-k forwards ahead)

    Backwards run in shard order in both, so both add gradients in the same order.
    """
    last, shards = program.blocks, program.settings.shards
    reaching = program.rule.credit.reaching(k, last)
    ahead = max(reaching) - k
    if program.rule.order == "gpipe" or ahead >= shards:
        ahead = shards - 1
    operations: list[Operation] = []
    for step in steps:
        for turn in range(shards + ahead):
            if turn < shards:
                operations.append(Operation(Kind.FORWARD, step, turn))
            if turn >= ahead:
                operations += _backward(program, k, reaching, step, turn - ahead)
        operations.append(Operation(Kind.UPDATE, step))
        for operation in _evaluations(calendar, step):
            operations.append(operation)
            if operation.shard + 1 == calendar.evaluation_batches[operation.split]:
                operations.append(Operation(Kind.TALLY, step, split=operation.split))
        if step in calendar.snapshots:
            operations.append(Operation(Kind.SNAPSHOT, step))
    return operations


def _backward(
    program: Program, k: int, reaching: tuple[int, ...], step: int, shard: int
) -> Iterator[Operation]:
    if k == program.blocks or program.assessed(k):
        yield Operation(Kind.ASSESS, step, shard)
    for origin in reaching:
        if origin != k:
            yield Operation(Kind.GRADIENT, step, shard, origin)


def feedback_program(program: Program, calendar: Calendar, steps: range) -> list[Operation]:
    """The operations of any feedback module."""
    operations: list[Operation] = []
    for step in steps:
        operations.append(Operation(Kind.TABLE, step))
        for shard in range(program.settings.shards):
            operations.append(Operation(Kind.READOUT, step, shard))
        operations.append(Operation(Kind.FEEDBACK_UPDATE, step))
        if step in calendar.snapshots:
            operations.append(Operation(Kind.SNAPSHOT, step))
    return operations


def _evaluations(calendar: Calendar, step: int) -> Iterator[Operation]:
    for split in calendar.evaluations.get(step, ()):
        for batch in range(calendar.evaluation_batches[split]):
            yield Operation(Kind.EVALUATE, step, batch, split=split)
