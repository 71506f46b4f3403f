"""What limits a run: how often a step can end at best, because of whom, and who keeps the most.

Pure functions of a program and its costs. Every actor is taken to have a device of its own, and a
message to take no time: the rate is an upper bound. `orchestrator/findings.py` puts it in words.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from actors.operations import Kind, Operation
from learning.build import Program
from learning.credit import Delayed, Guided
from learning.messages import block_name
from orchestrator.costs import Costs
from orchestrator.dependencies import SOURCE, in_order, needs, number, programs

LONGEST_PERIOD = 2000
"""Steps of a rule's period that are looked at; of a longer one, those from here on."""
SLACK = 1.01
"""A period within 1 % of the busiest actor's work is that actor's doing."""


@dataclass
class Work:
    """What an actor does in a step.

    Attributes:
        seconds: of all its operations.
        forward: bytes of messages to later blocks.
        back: bytes of messages to earlier blocks.
        beside: bytes of messages between a block and its own feedback module.
        activations: bytes kept for backward passes, of as many shards at once as its program has.
        shards: how many those are, at most.
        state: bytes of parameters, gradients and optimizer state.
    """

    seconds: float = 0.0
    forward: float = 0.0
    back: float = 0.0
    beside: float = 0.0
    activations: int = 0
    shards: int = 0
    state: int = 0

    @property
    def memory(self) -> int:
        """Bytes that the actor keeps in all."""
        return self.activations + self.state


@dataclass(frozen=True)
class Limit:
    """The shortest time from one step to the next.

    Attributes:
        period: seconds a step, over many steps.
        busiest: the actor with the most work a step.
        chain: the actors that a step goes through one after the other; one where the busiest
            actor alone is the limit.
    """

    period: float
    busiest: str
    chain: tuple[str, ...]


def works(program: Program, costs: Costs) -> dict[str, Work]:
    """What every actor does in a step, on average over a period of the rule, after all delays."""
    steps = _typical(program)
    lists = programs(program, steps)
    result: dict[str, Work] = {}
    for name, kinds in _counted(lists, steps).items():
        seconds = sum(n * costs.operations[name, kind].seconds for kind, n in kinds.items())
        shards, kept = _kept(program, costs, name)
        state = costs.state_bytes.get(name, 0)
        result[name] = Work(seconds, activations=kept, shards=shards, state=state)
    sent = {
        (to, need) for to, ops in lists.items() for op in ops for need in needs(program, to, op)
    }
    for to, need in sent:
        size = _size(costs, need.sender, need.operation.kind, to, need.what) / len(steps)
        work, way = result[need.sender], number(to) - number(need.sender)
        if way > 0:
            work.forward += size
        elif way < 0:
            work.back += size
        else:
            work.beside += size
    return result


def operations_a_step(program: Program) -> dict[str, dict[Kind, float]]:
    """How many operations of each kind every actor has in a step, on average as in `works`."""
    steps = _typical(program)
    return _counted(programs(program, steps), steps)


def _counted(
    lists: Mapping[str, Sequence[Operation]], steps: range
) -> dict[str, dict[Kind, float]]:
    counts = {name: Counter(op.kind for op in operations) for name, operations in lists.items()}
    return {
        name: {kind: n / len(steps) for kind, n in kinds.items()} for name, kinds in counts.items()
    }


def _size(costs: Costs, sender: str, kind: Kind, to: str, what: str) -> int:
    sends = costs.operations[sender, kind].sends
    return next((sent.size for sent in sends if (sent.to, sent.what) == (to, what)), 0)


def _kept(program: Program, costs: Costs, name: str) -> tuple[int, int]:
    """Shards between forward and last backward pass at one time, and the bytes kept for them."""
    one = costs.activation_bytes.get(name, 0)
    if name == SOURCE:
        return 0, 0
    if not name.startswith("block"):
        return 1, one
    k, credit = number(name), program.rule.credit
    shards = max(_under_way(program, k, step) for step in _phases(program))
    if isinstance(credit, Delayed) and credit.stash == "inputs" and shards > 1:
        before = block_name(k - 1) if k > 1 else SOURCE
        kind = Kind.FORWARD if k > 1 else Kind.BATCH
        return shards, one + (shards - 1) * _size(costs, before, kind, name, "x")
    return shards, one * shards


def _phases(program: Program) -> list[int]:
    """A step of each phase of the rule's credit, after all delays."""
    credit, first = program.rule.credit, _longest_delay(program)
    return [first, credit.guided] if isinstance(credit, Guided) else [first]


def _under_way(program: Program, k: int, step: int) -> int:
    """The most shards of block k between forward and last backward pass, up to `step`."""
    delay = program.rule.credit.delay(k, program.blocks)
    lists = programs(program, range(step - delay, step + 1))[block_name(k)]
    last: dict[tuple[int, int], int] = {}
    for place, op in enumerate(lists):
        if op.kind in (Kind.ASSESS, Kind.GRADIENT):
            last[op.step, op.shard] = place
    under_way = most = 0
    for place, op in enumerate(lists):
        if op.kind is Kind.FORWARD:
            under_way += 1
            most = max(most, under_way)
        elif op.step >= step - delay and last.get((op.step, op.shard)) == place:
            under_way -= 1
    return most


def period_of(program: Program) -> int:
    """After how many steps a rule starts over: the next ones are like those before."""
    rule = program.rule
    every = (reading.every for reading in rule.readings(program.blocks))
    own = rule.credit.period if isinstance(rule.credit, Guided) else 1
    return math.lcm(own, *every)


def _typical(program: Program) -> range:
    """The steps that stand for all: a period after all delays, or those that `limit` looks at."""
    period = period_of(program)
    if period <= LONGEST_PERIOD:
        first = _longest_delay(program) + 1
        return range(first, first + period)
    span = _span(program)
    return range(span, 2 * span)


def _span(program: Program) -> int:
    """Steps until the pipeline is full, in whole periods: `limit` looks at as many after them."""
    period = min(period_of(program), LONGEST_PERIOD)
    enough = max(32, 4 * (program.blocks + _longest_delay(program)))
    return period * math.ceil(enough / period)


def _longest_delay(program: Program) -> int:
    """Steps until every message that comes some steps late does come."""
    last = program.blocks
    gradients = (program.rule.credit.delay(k, last) for k in range(1, last + 1))
    weights = (reading.delay for reading in program.rule.readings(last))
    return max(program.feedback_delay, *gradients, *weights)


def limit(program: Program, costs: Costs) -> Limit:
    """The longest path through the operations of many steps, per step, once it grows evenly.

    An operation begins when the one before it on its actor and those that send its messages are
    done. The pipeline's fill is left out: the second half of the steps counts.
    """
    span = _span(program)
    ends: dict[tuple[str, Operation], float] = {}
    cause: dict[tuple[str, Operation], tuple[str, Operation] | None] = {}
    free: dict[str, tuple[str, Operation]] = {}
    step_ends: defaultdict[int, float] = defaultdict(float)
    for name, op, wanted in in_order(program, programs(program, range(2 * span)), set()):
        before = [(need.sender, need.operation) for need in wanted]
        before += [free[name]] if name in free else []
        last = max(before, key=ends.__getitem__, default=None)
        start = 0.0 if last is None else ends[last]
        here = (name, op)
        ends[here] = start + costs.operations[name, op.kind].seconds
        cause[here], free[name] = last, here
        if op.kind in (Kind.UPDATE, Kind.FEEDBACK_UPDATE):
            step_ends[op.step] = max(step_ends[op.step], ends[here])
    middle, end = step_ends[span - 1], step_ends[2 * span - 1]
    each = (end - middle) / span
    work = works(program, costs)
    busiest = max(work, key=lambda name: work[name].seconds)
    if each <= work[busiest].seconds * SLACK:
        return Limit(max(each, work[busiest].seconds), busiest, (busiest,))
    at: tuple[str, Operation] | None = max(
        (here for here in ends if here[1].step == 2 * span - 1), key=ends.__getitem__
    )
    chain: list[str] = []
    while at is not None and ends[at] > middle:
        if ends[at] <= (middle + end) / 2:  # the very end drains
            chain.append(at[0])
        at = cause[at]
    return Limit(each, busiest, tuple(dict.fromkeys(sorted(chain, key=rank))))


def rank(name: str) -> tuple[bool, int]:
    """The source, blocks 1 to K, feedback modules 1 to K-1."""
    return name.startswith("feedback"), number(name)
