"""The report of a study as Markdown: a table for each network and cut, and what made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from blocklocal.compare.summary import Row, Summary, SummaryTable
from orchestrator import pages
from orchestrator.plan import human_bytes

COSTS = (
    "extra parameters",
    "extra FLOPs",
    "activations, largest block",
    "activations, all blocks",
    "forward a step",
    "back a step",
    "beside a step",
)
LEGEND = (
    "Costs are counts of one training step. Extra parameters: of auxiliary networks and feedback "
    "modules. Extra FLOPs: beyond backprop's, as a share of it. Activations: the most kept for "
    "backward passes at one time, in the largest block and added up over the blocks. Forward, "
    "back, beside: bytes of messages to later blocks, to earlier blocks, and between a block and "
    "its own feedback module."
)


def page(summary: Summary, pictures: Sequence[str] = ()) -> str:
    """The whole page.

    Args:
        pictures: names of files beside it.
    """
    parts = [f"# {summary.title}"]
    if summary.description:
        parts.append(summary.description.strip())
    several = len(summary.tables) > 1
    for table in summary.tables:
        if several:
            parts.append(f"## {_heading(table)}")
        parts.append("\n".join(_table(table, summary)))
    parts += [f"![{name.partition('.')[0]}]({name})" for name in pictures]
    if any(row.costs for table in summary.tables for row in table.rows):
        parts.append(LEGEND)
    parts += [_made(made) for made in summary.made]
    return "\n\n".join(parts) + "\n"


def _heading(table: SummaryTable) -> str:
    return ", ".join(x for x in (table.network, table.blocks) if x is not None)


def _table(table: SummaryTable, summary: Summary) -> list[str]:
    unit = "accuracy %" if summary.metric == "accuracy" else "perplexity"
    metric = unit if summary.split == "test" else f"{summary.split} {unit}"
    costs = COSTS if any(row.costs for row in table.rows) else ()
    names = ["rule", metric, "std", "runs", f"gap to {summary.baseline}", *costs]
    rows = [
        (
            row.rule,
            _number(row.mean),
            _number(row.std),
            len(row.values),
            "" if row.gap is None else f"{row.gap:+.2f}",
            *(_costs(row) if costs else ()),
        )
        for row in table.rows
    ]
    return pages.table(names, rows)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _costs(row: Row) -> list[str]:
    if row.costs is None:
        return [""] * len(COSTS)
    costs = row.costs
    base = costs["backprop_flops"]
    return [
        f"{costs['extra_parameters']:,}",
        f"{costs['flops'] / base - 1:+.1%}" if base else "",
        human_bytes(max(costs["activation_bytes"])),
        human_bytes(sum(costs["activation_bytes"])),
        human_bytes(costs["bytes_forward"]),
        human_bytes(costs["bytes_back"]),
        human_bytes(costs["bytes_beside"]),
    ]


def _made(made: dict[str, Any]) -> str:
    commit = (made["git_commit"] or "unknown")[:12] + (" with changes" if made["git_dirty"] else "")
    runs = "1 run" if made["runs"] == 1 else f"{made['runs']} runs"
    command = made["command"] or "unknown command"
    machine = f"{made['cores']} cores of {made['processor']}"
    return f"{runs} of `{command}`, commit {commit}, torch {made['torch']}, on {machine}."
