"""What limits a run, in plain words and as a table. docs/plan.md explains both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rich.table import Table

from learning.build import Program
from learning.messages import block_name
from learning.rules import Backprop
from orchestrator.costs import Costs
from orchestrator.dependencies import SOURCE, number
from orchestrator.limits import Limit, Work, limit, rank, works
from orchestrator.plan import human_bytes

WORTH_SAYING = 0.05
"""The share of a block's time that must be the rule's own before a sentence names it."""


def table(program: Program, costs: Costs) -> Table:
    """One row an actor: what it does, sends and keeps in a step, as `orchestrator.limits.Work`."""
    work = works(program, costs)
    threads = "1 thread" if costs.threads == 1 else f"{costs.threads} threads"
    result = Table(title=f"one step of rule {rule_name(program)}, {threads} an actor")
    result.add_column("actor")
    for name in ("work", "forward", "back", "beside", "kept", "state"):
        result.add_column(name, justify="right", no_wrap=True)
    for name in sorted(work, key=rank):
        own = work[name]
        sizes = (own.forward, own.back, own.beside, own.activations, own.state)
        cells = ("-" if not size else human_bytes(round(size)) for size in sizes)
        result.add_row(name, milliseconds(own.seconds), *cells)
    return result


def sentences(program: Program, costs: Costs, plain: Costs | None = None) -> list[str]:
    """What limits the run: first the rate, then the memory.

    Args:
        plain: the costs of the same blocks under backprop, to tell what the rule adds.
    """
    work, found = works(program, costs), limit(program, costs)
    rate = f"at most {1 / found.period:.3g} steps/s with rule {rule_name(program)}"
    return [
        f"{_cause(program, work, found)}: {rate}, one device for each actor"
        f"{_added(program, work, found, plain)}",
        _memory(work),
    ]


def _cause(program: Program, work: Mapping[str, Work], found: Limit) -> str:
    own = work[found.busiest].seconds
    if len(found.chain) > 1:
        return (
            f"a step goes through {_enumerated(found.chain)} in a row, so that the busiest, "
            f"{spoken(found.busiest)}, works {own / found.period:.0%} of the time"
        )
    takes = f"{spoken(found.busiest)} takes {milliseconds(own)} a step"
    if not found.busiest.startswith("block"):
        return f"{takes}, longer than any block"
    blocks = [work[block_name(k)].seconds for k in range(1, program.blocks + 1)]
    if len(blocks) == 1:
        return takes
    return f"{takes}, {own * len(blocks) / sum(blocks):.1f} times the mean of the blocks"


def _added(program: Program, work: Mapping[str, Work], found: Limit, plain: Costs | None) -> str:
    """What the rule adds to the block that limits the run, where one does."""
    name = found.busiest
    if plain is None or len(found.chain) > 1 or not name.startswith("block"):
        return ""
    under_backprop = works(replace(program, rule=Backprop()), plain)[name].seconds
    share = 1 - under_backprop / work[name].seconds
    if share < WORTH_SAYING:
        return ""
    return f"; {share:.0%} of its time goes beyond what its units take under backprop"


def _memory(work: Mapping[str, Work]) -> str:
    name = max(work, key=lambda name: work[name].memory)
    own = work[name]
    shards = "1 shard" if own.shards == 1 else f"{own.shards} shards at once"
    return (
        f"{spoken(name)} keeps the most, {human_bytes(own.memory)}: "
        f"{human_bytes(own.activations)} for backward passes of {shards}, "
        f"{human_bytes(own.state)} of weights, gradients and optimizer state"
    )


def rule_name(program: Program) -> str:
    """The kind of a program's rule."""
    return program.rule.model_dump()["kind"]


def spoken(name: str) -> str:
    """An actor's name for people."""
    if name == SOURCE:
        return "the source"
    return f"{'feedback module' if name.startswith('feedback') else 'block'} {number(name)}"


def milliseconds(seconds: float) -> str:
    """Write a time for people: 0.0420 ms, 31.2 ms, 1250 ms."""
    return f"{seconds * 1e3:#.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:.0f} ms"


def _enumerated(names: Sequence[str]) -> str:
    """Names in a row; of many, the first, the last and their number."""
    if len(names) > 4:
        return f"{len(names)} actors ({spoken(names[0])} to {spoken(names[-1])})"
    return ", ".join(map(spoken, names[:-1])) + f" and {spoken(names[-1])}"
