"""The page of the time to a fixed accuracy: a table of rules for every example."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks import records
from benchmarks.time_to_accuracy_tasks import ONE_PROCESS


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Wall time to a fixed accuracy",
        "",
        f"{record['blocks']} blocks, all processes together on "
        f"{record['environment']['cores']} cores; medians of {record['repeats']} interleaved "
        "repeats with seeds of their own (lowest to highest). Evaluations and the start of "
        "processes are not in the clock. N-wise rules with N of at least the number of blocks are "
        "backprop and are left out.",
    ]
    for name, task in record["tasks"].items():
        what = "perplexity" if task["falling"] else "accuracy"
        lines += [
            "",
            f"## {name}: {what} {task['target']:g}",
            "",
            f"| rule | seconds to {what} {task['target']:g} | against {ONE_PROCESS} | steps "
            f"| steps/s | best {what} in {task['steps']} steps |",
            "|---|---|---|---|---|---|",
        ]
        runs: dict[str, list[dict[str, Any]]] = {}
        for run in record["runs"]:
            if run["task"] == name:
                runs.setdefault(run["rule"], []).append(run)
        alone = {run["repeat"]: run for run in runs[ONE_PROCESS]}
        best = min if task["falling"] else max
        for rule, mine in runs.items():
            seconds = [r["seconds_to_target"] for r in mine]
            steps = [r["steps_to_target"] for r in mine]
            values = [best(c["value"] for c in r["curve"]) for r in mine]
            reached = None not in seconds
            pairs = [(r["seconds_to_target"], alone[r["repeat"]]) for r in mine]
            ratios = [s / a["seconds_to_target"] for s, a in pairs if a["seconds_to_target"] and s]
            cells = [
                _cell(seconds, 1) if reached else f"not by {sum(s is None for s in seconds)}",
                _cell(ratios, 2) if reached and ratios else "",
                _cell(steps, 0) if reached else "",
                _cell([r["steps_per_second"] for r in mine], 2),
                _cell(values, 3),
            ]
            lines.append(f"| {rule} | " + " | ".join(cells) + " |")
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float], digits: int) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"
