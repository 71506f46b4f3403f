"""Which operations of other actors an operation waits for, and an order in which all can run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from actors.operations import Kind, Operation
from learning.build import Program
from learning.learners.feedback import table_step
from learning.messages import block_name, feedback_name
from orchestrator.program import Calendar, block_program, feedback_program, source_program

SOURCE = "source"
LANE_MARK = ".lane"
"""Between an actor's learner and its lane, in its name, from the second lane on."""
NOTHING_ELSE = Calendar()


class Need(NamedTuple):
    """A message that an operation takes: who sends it, in which operation, and what it is."""

    sender: str
    operation: Operation
    what: str


def number(name: str) -> int:
    """K of `block<k>` and `feedback<k>`, 0 of the source."""
    return 0 if name == SOURCE else int(name.removeprefix("block").removeprefix("feedback"))


def programs(program: Program, steps: range) -> dict[str, list[Operation]]:
    """What every actor executes in `steps`, by its name; training only."""
    every = {SOURCE: source_program(program, NOTHING_ELSE, steps)}
    for k in range(1, program.blocks + 1):
        every[block_name(k)] = block_program(program, k, NOTHING_ELSE, steps)
    for k in range(1, program.feedback_modules + 1):
        every[feedback_name(k)] = feedback_program(program, NOTHING_ELSE, steps)
    return every


def needs(program: Program, name: str, op: Operation, *, mixing: bool = False) -> list[Need]:
    """The messages that an operation of training takes.

    Args:
        mixing: whether forward passes read tables (`rule.bootstrap.share`, until it is 0).
    """
    k, step, shard = number(name), op.step, op.shard
    tables = [] if k > program.feedback_modules else [_table(program, k, step)]
    if op.kind is Kind.FORWARD:
        if k == 1:
            return [Need(SOURCE, Operation(Kind.BATCH, step, shard), "x")] + tables * mixing
        before = Need(block_name(k - 1), Operation(Kind.FORWARD, step, shard), "x")
        return [before] + tables * mixing
    if op.kind is Kind.ASSESS:
        return tables
    if op.kind is Kind.GRADIENT:
        after = program.blocks if program.rule.credit.broadcast else k + 1
        own = op.origin == after
        work = (
            Operation(Kind.ASSESS, step, shard)
            if own
            else Operation(Kind.GRADIENT, step, shard, op.origin)
        )
        return [Need(block_name(after), work, "g")]
    if op.kind is Kind.READ:
        return [Need(block_name(op.origin), Operation(Kind.PUBLISH, step), "weights")]
    if op.kind is Kind.TABLE and program.feedback_chain and k < program.feedback_modules:
        return [Need(feedback_name(k + 1), Operation(Kind.TABLE, step), "raw")]
    if op.kind is Kind.READOUT:
        return [Need(block_name(k), Operation(Kind.ASSESS, step, shard), "readout")]
    return []


def _table(program: Program, k: int, step: int) -> Need:
    used = table_step(step, program.feedback_delay)
    return Need(feedback_name(k), Operation(Kind.TABLE, used), "table")


def in_order(
    program: Program,
    lists: Mapping[str, Sequence[Operation]],
    done: set[tuple[str, Operation]],
    *,
    mixing: bool = False,
) -> Iterator[tuple[str, Operation, list[Need]]]:
    """All operations, each actor's in its own order and none before what it needs.

    Args:
        done: what was executed before; everything here is added to it.

    Raises:
        AssertionError: when every actor waits for another one: a deadlock.
    """
    places = dict.fromkeys(lists, 0)
    unfinished = [name for name, operations in lists.items() if operations]
    while unfinished:
        moved = False
        for name in unfinished:
            while places[name] < len(lists[name]):
                op = lists[name][places[name]]
                wanted = needs(program, name, op, mixing=mixing)
                if any((need.sender, need.operation) not in done for need in wanted):
                    break
                yield name, op, wanted
                done.add((name, op))
                places[name] += 1
                moved = True
        unfinished = [name for name in unfinished if places[name] < len(lists[name])]
        assert moved or not unfinished, {name: lists[name][places[name]] for name in unfinished}
