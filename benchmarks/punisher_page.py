"""The page of the punisher: what was asked, every run, and where a recovery's seconds go."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import records
from benchmarks.measuring import spread

GOODPUT, BETWEEN = 0.80, 30.0
"""At least so much is asked, at a kill every so many seconds."""
RECOVERY_SECONDS = 5.0
"""Less is asked, from an actor's death to the next new step, in the median."""
PHASES = ("noticing", "ending", "starting", "restoring", "replaying")

Run = Mapping[str, Any]


def page(record: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    runs: list[Run] = record["runs"]
    made, what = record["workload"], "node" if record["nodes"] else "actor"
    lines = [
        f"# Training while {what}s are killed",
        "",
        f"Two blocks of {made['layers']} linear layers of {made['width']} each, batch "
        f"{made['batch']}, rule `{made['rule']}`, transport `{record['transport']}`; one {what} at "
        "a time is ended by SIGKILL, as if at exponential intervals (seed "
        f"{record['seed']}). Goodput: new steps a second as a share of the same run without kills "
        "and with the same snapshots.",
        "",
        *_asked(record),
        *_every_run(runs),
        *_grid(runs),
        *_phases(runs),
        records.footer(record["environment"]),
    ]
    return "\n".join(lines) + "\n"


def recoveries(runs: Sequence[Run]) -> list[float]:
    """Seconds from each kill to the next new step."""
    found = [kill["recovery"] for run in runs for kill in run["kills"]]
    return [seconds for seconds in found if seconds is not None]


def _asked(record: Mapping[str, Any]) -> list[str]:
    """What was asked, beside what was measured; first, because the README shows it."""
    runs: list[Run] = record["runs"]
    lines = ["| asked | target | measured | reached |", "|---|---|---|---|"]
    for run in runs:
        if run["between"] == BETWEEN and not record["nodes"]:
            what = f"goodput, {len(run['kills'])} kills, one every {BETWEEN:g} s"
            every = f", a snapshot every {run['every']} steps"
            reached = "yes" if run["goodput"] >= GOODPUT else "no"
            lines.append(f"| {what}{every} | {GOODPUT:.0%} | {run['goodput']:.0%} | {reached} |")
    found = recoveries(runs)
    if found and not record["nodes"]:
        reached = "yes" if statistics.median(found) < RECOVERY_SECONDS else "no"
        lines.append(
            "| seconds from the death of an actor to the next new step | under "
            f"{RECOVERY_SECONDS:g} | {spread(found, 1)} | {reached} |"
        )
    same = all(run["same_bits"] for run in runs)
    lines.append(
        "| state of all learners at the end | the bits of a run without kills "
        f"| {'the same' if same else 'OTHERS'} | {'yes' if same else 'no'} |"
    )
    return [*lines, ""]


def _every_run(runs: Sequence[Run]) -> list[str]:
    lines = [
        "| mean s between kills | steps between snapshots | kills of those planned | incidents "
        "| new steps | s | steps done again | steps/s without kills | goodput | recovery, s "
        "| same bits |",
        "|" + "---|" * 11,
    ]
    for run in runs:
        again, found = sum(i["steps_lost"] for i in run["incidents"]), recoveries([run])
        cells = [
            f"{run['between']:g}",
            run["every"],
            f"{len(run['kills'])} of {run['planned']}",
            len(run["incidents"]),
            run["new_steps"],
            f"{run['seconds']:.0f}",
            again,
            f"{run['rate_without_kills']:.1f}",
            f"{run['goodput']:.0%}",
            spread(found, 1) if found else "",
            "yes" if run["same_bits"] else "NO",
        ]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return [*lines, ""]


def _grid(runs: Sequence[Run]) -> list[str]:
    """Goodput by both intervals, where there are several of both."""
    betweens = list(dict.fromkeys(run["between"] for run in runs))
    intervals = list(dict.fromkeys(run["every"] for run in runs))
    if len(betweens) < 2 or len(intervals) < 2:
        return []
    goodput = {(run["every"], run["between"]): run["goodput"] for run in runs}
    head = " | ".join(f"a kill every {between:g} s" for between in betweens)
    lines = [f"| goodput | {head} |", "|" + "---|" * (len(betweens) + 1)]
    for every in intervals:
        cells = " | ".join(f"{goodput[every, between]:.0%}" for between in betweens)
        lines.append(f"| a snapshot every {every} steps | {cells} |")
    return [*lines, ""]


def _phases(runs: Sequence[Run]) -> list[str]:
    """Medians over all kills that did not fall into another's recovery."""
    found = [kill["phases"] for run in runs for kill in run["kills"] if kill["phases"]]
    if not found:
        return []
    lines = [
        f"Seconds by phase, medians of {len(found)} kills (lowest to highest); `noticing` begins "
        "with the death ([what the phases are](../../docs/recovery.md)):",
        "",
        "| phase | s |",
        "|---|---|",
    ]
    for phase in PHASES:
        lines.append(f"| {phase} | {spread([phases.get(phase, 0.0) for phases in found])} |")
    lines.append(f"| **all** | **{spread([sum(phases.values()) for phases in found])}** |")
    return [*lines, ""]
