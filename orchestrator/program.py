"""Each actor's program: the operations of a chunk of steps, in the one order it executes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from actors.operations import Kind, Operation
from learning.build import Program
from learning.learners.publishing import Publication
from learning.messages import block_name
from learning.policies.tree import shares


@dataclass(frozen=True)
class Calendar:
    """What happens after which step, besides training.

    Attributes:
        evaluations: step to the splits evaluated after it.
        snapshots: steps after which all learners are saved.
        evaluation_batches: split to its number of batches.
        snapshot_seconds: how long after a snapshot another one is taken, besides those.
    """

    evaluations: dict[int, tuple[str, ...]] = field(default_factory=dict)
    snapshots: frozenset[int] = frozenset()
    evaluation_batches: dict[str, int] = field(default_factory=dict)
    snapshot_seconds: float | None = None


@dataclass(frozen=True)
class Part:
    """What one lane does of each step.

    Attributes:
        shards: a run of the step's shards.
        leads: whether it evaluates and takes snapshots: one lane does, for all are the same.
    """

    shards: range
    leads: bool = True


def parts(program: Program, lanes: int) -> list[Part]:
    """What each of so many lanes does; the first leads."""
    runs = shares(program.settings.shards, lanes)
    return [Part(run, leads=i == 0) for i, run in enumerate(runs)]


def channels(program: Program, sender: str, messages: int) -> dict[str, int | None]:
    """The learners that one sends to, by name, and the windows of these channels, in messages.

    Only activations can run ahead of who takes them; everything else answers something.
    """
    ahead = block_name(1)
    if sender.startswith("block"):
        ahead = block_name(int(sender.removeprefix("block")) + 1)
    windowed = "" if sender.startswith("feedback") else ahead
    return {name: messages if name == windowed else None for name in program.receivers(sender)}


def source_program(
    program: Program, calendar: Calendar, steps: range, part: Part | None = None
) -> list[Operation]:
    """Batches in the order in which block 1 takes them.

    Args:
        part: of which lane; None for that of a single one.
    """
    part = part or parts(program, 1)[0]
    operations: list[Operation] = []
    for step in steps:
        for shard in part.shards:
            operations.append(Operation(Kind.BATCH, step, shard))
        if part.leads:
            operations += _evaluations(calendar, step)
    return operations


def with_batches(operations: Iterable[Operation]) -> list[Operation]:
    """Block 1's program where it makes its own batches, each right before it is taken.

    Those of evaluations are made as a part of the operation that takes them.
    """
    made: list[Operation] = []
    for op in operations:
        if op.kind is Kind.FORWARD:
            made.append(op._replace(kind=Kind.BATCH))
        made.append(op)
    return made


def block_program(
    program: Program, k: int, calendar: Calendar, steps: range, part: Part | None = None
) -> list[Operation]:
    """The operations of block k.

    A shard is worked on as soon as everything that reaches the block has arrived; under a local
    credit that is at once, so no shard's activations outlive it. Where a gradient comes back from
    later blocks, the rule's order says how many forwards run ahead:

        gpipe   F0 F1 F2 F3 G0 G1 G2 G3 U
        1f1b    F0 F1 G0 F2 G1 F3 G2 G3 U      (block K-1; block k runs K-k forwards ahead)

    Backwards run in shard order in both, so both add gradients in the same order.

    Args:
        part: of which lane; None for that of a single one.
    """
    part = part or parts(program, 1)[0]
    operations: list[Operation] = []
    for step in steps:
        operations += _told(program, k, step)
        operations += _shards(program, k, step, part.shards)
        operations.append(Operation(Kind.UPDATE, step))
        if not part.leads:
            continue
        for operation in _evaluations(calendar, step):
            operations.append(operation)
            if operation.shard + 1 == calendar.evaluation_batches[operation.split]:
                operations.append(Operation(Kind.TALLY, step, split=operation.split))
        if step in calendar.snapshots:
            operations.append(Operation(Kind.SNAPSHOT, step))
    return operations


def _told(program: Program, k: int, step: int) -> Iterator[Operation]:
    """Weights that go to, or come from, another block before a step."""
    if any(Publication(reading).due(step) for reading in program.readings_of(k)):
        yield Operation(Kind.PUBLISH, step)
    reading = program.reading(k)
    if reading is not None and (read := reading.step_read(step)) is not None:
        yield Operation(Kind.READ, read, origin=reading.publisher)


def _shards(program: Program, k: int, step: int, own: range) -> Iterator[Operation]:
    """Forwards and backwards of one step. A delayed backward is that of an earlier step."""
    credit, last, shards = program.rule.credit, program.blocks, len(own)
    reaching = credit.at(step).reaching(k, last)
    delay = credit.delay(k, last)
    ahead = 0 if delay else max(reaching) - k
    if program.rule.order == "gpipe" or ahead >= shards:
        ahead = shards - 1
    for turn in range(shards + ahead):
        if turn < shards:
            yield Operation(Kind.FORWARD, step, own[turn])
        if turn >= ahead and step >= delay:
            yield from _backward(k, reaching, step - delay, own[turn - ahead])


def _backward(k: int, reaching: tuple[int, ...], step: int, shard: int) -> Iterator[Operation]:
    for origin in reaching:
        if origin == k:
            yield Operation(Kind.ASSESS, step, shard)
        else:
            yield Operation(Kind.GRADIENT, step, shard, origin)


def feedback_program(
    program: Program, calendar: Calendar, steps: range, part: Part | None = None
) -> list[Operation]:
    """The operations of any feedback module.

    Args:
        part: of which lane; None for that of a single one.
    """
    part = part or parts(program, 1)[0]
    operations: list[Operation] = []
    for step in steps:
        operations.append(Operation(Kind.TABLE, step))
        for shard in part.shards:
            operations.append(Operation(Kind.READOUT, step, shard))
        operations.append(Operation(Kind.FEEDBACK_UPDATE, step))
        if part.leads and step in calendar.snapshots:
            operations.append(Operation(Kind.SNAPSHOT, step))
    return operations


def _evaluations(calendar: Calendar, step: int) -> Iterator[Operation]:
    for split in calendar.evaluations.get(step, ()):
        for batch in range(calendar.evaluation_batches[split]):
            yield Operation(Kind.EVALUATE, step, batch, split=split)
