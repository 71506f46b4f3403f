"""The page of the memory benchmark: every network, its largest block against backprop."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import records

TARGET_SHARE = 0.35
MIB = 2**20


Point = tuple[str, int, int]
"""Network, depth, batch."""


def summary(measured: Sequence[dict[str, Any]]) -> dict[Point, dict[tuple[str, int], Any]]:
    """By point, then by rule and number of blocks: of each quantity the largest block and the sum.

    Each is the median over repeats, with the lowest and the highest.
    """
    grouped: dict[Point, dict[tuple[str, int], dict[int, list[dict[str, Any]]]]] = {}
    for m in measured:
        point = (m["network"], m["depth"], m["batch"])
        by_rule = grouped.setdefault(point, {}).setdefault((m["rule"], m["blocks"]), {})
        by_rule.setdefault(m["repeat"], []).append(m)
    quantities = ("activations", "gradients", "allocated", "process_above", "process")
    return {
        point: {
            rule: {
                f"{name} {how}": _spread([act([m[name] for m in r]) for r in repeats.values()])
                for name in quantities
                for how, act in (("largest", max), ("sum", sum))
            }
            for rule, repeats in rules.items()
        }
        for point, rules in grouped.items()
    }


def _spread(values: Sequence[int]) -> tuple[float, int, int]:
    return statistics.median(values), min(values), max(values)


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Peak memory: backprop against blocks",
        "",
        f"Equal layers cut into K equal blocks, each in a process of its own; `local` has linear "
        f"heads, `backprop` in blocks takes gradients from the next block. MiB of the largest "
        f"block, in brackets its share of backprop in one process (K = 1). Counts are exact; "
        f"resident memory above that before the first step: median of {record['repeats']} fresh "
        f"processes (lowest to highest).",
    ]
    points = summary(record["measured"])
    for (name, depth, batch), rules in points.items():
        lines += [
            "",
            f"## {name}, {depth} layers of {record['widths'][name]}, batch {batch}",
            "",
            "| rule | K | activations | gradients | allocated at once | resident, above the start "
            "| whole process | all processes together |",
            "|---|---|---|---|---|---|---|---|",
        ]
        whole = rules["backprop", 1]
        for (rule, blocks), values in sorted(rules.items(), key=lambda r: (r[0][1], r[0][0])):
            cells = [rule, str(blocks)]
            for quantity in ("activations", "gradients", "allocated", "process_above"):
                middle, low, high = values[f"{quantity} largest"]
                share = middle / max(1, whole[f"{quantity} largest"][0])
                spread = "" if low == high else f" ({low / MIB:.1f} to {high / MIB:.1f})"
                cells.append(f"{middle / MIB:.2f}{spread} [{share:.0%}]")
            cells.append(f"{values['process largest'][0] / MIB:.0f}")
            cells.append(f"{values['process sum'][0] / MIB:.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    shares = [
        rules["local", 4]["activations largest"][0] / rules["backprop", 1]["activations largest"][0]
        for rules in points.values()
        if ("local", 4) in rules
    ]
    if shares:
        lines += [
            "",
            f"Activations of the largest of 4 blocks under `local`: {min(shares):.0%} to "
            f"{max(shares):.0%} of backprop's (target: at most {TARGET_SHARE:.0%}). Above 1/K are "
            "the block's input and its auxiliary head. Backprop in blocks saves as much for each "
            "process with one step under way; to keep its K processes busy it needs several.",
        ]
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"
