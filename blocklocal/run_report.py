"""The report of a run, `report.md` in its directory: what it was, what came out, how it went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocklocal.config import make_config
from orchestrator.pages import table
from orchestrator.record_files import replace_record
from orchestrator.rundir import RunDirectory
from orchestrator.trace import ActorSpan, concurrency, idle_shares

PAGE = "report.md"
PICTURES = {"curves.png": "Losses over steps", "timeline.png": "Some steps of all actors"}
"""Shown where they have been drawn."""
MOST_ROWS = 20
"""Of evaluations, evenly chosen; metrics.jsonl has all."""


def write_report(run: RunDirectory, spans: Sequence[ActorSpan] = ()) -> Path:
    """Write the report of a run as it is now, over an earlier one.

    Args:
        spans: of its timeline; without them the report says nothing of how busy actors were.

    Raises:
        UserError: when the records of the run are damaged, or it cannot be written.
    """
    metrics = run.read_metrics()
    parts = (
        _head(run),
        _results(run, metrics),
        _evaluations(metrics),
        _blocks(run),
        _work(spans),
        _happenings(run),
        [f"![{text}]({name})" for name, text in PICTURES.items() if (run.path / name).exists()],
    )
    text = "\n\n".join("\n".join(part) for part in parts if part)
    # A trial that ends writes it, and so may the sweep that it belongs to.
    replace_record(run.path / PAGE, [text.encode() + b"\n"], shared=True)
    return run.path / PAGE


def _head(run: RunDirectory) -> list[str]:
    config, state, version = make_config(run.config), run.state, run.version
    given = {"data": config.data.kind, "network": config.network.kind}
    given |= dict.fromkeys(config.run.given, "given in Python")
    changed = " and changes" if version.get("git_dirty") else ""
    rows = {
        "rule": config.rule.kind,
        **given,
        "optimizer": f"{config.optimizer.kind}, lr {_plain(config.optimizer.lr)}",
        "batch, shards": f"{config.training.batch}, {config.training.shards}",
        "engine": config.engine.kind,
        "code": f"{version.get('package')}, commit {version.get('git_commit')}{changed}",
        "versions": ", ".join(
            f"{shown} {version.get(name)}"
            for shown, name in (("Python", "python"), ("torch", "torch"), ("Ray", "ray"))
        ),
        "machine": ", ".join(
            [str(version.get("platform")), f"{version.get('cpu_count')} CPUs", *_gpus(version)]
        ),
    }
    lines = [
        f"# Run {run.path.name}",
        "",
        f"{state.status.capitalize()} after {state.steps} steps.",
    ]
    if state.error:
        lines += ["", f"> {' '.join(state.error.split())}"]
    return [*lines, "", *table(("", ""), rows.items()), "", "All settings are in config.yaml."]


def _gpus(version: dict[str, Any]) -> list[str]:
    gpus = version.get("gpus")
    return [str(gpu) for gpu in gpus] if isinstance(gpus, list) else []


def _results(run: RunDirectory, metrics: Sequence[dict[str, Any]]) -> list[str]:
    """The last evaluation of each split, a row a block."""
    last = {record["split"]: record for record in metrics if record["split"] != "train"}
    columns = [
        (split, name)
        for split, record in last.items()
        for name in dict.fromkeys(key.partition("/")[2] for key in _values(record))
    ]
    learners = dict.fromkeys(key.partition("/")[0] for r in last.values() for key in _values(r))
    if not learners:
        return []
    rows = [
        (learner, *(_number(last[split].get(f"{learner}/{name}")) for split, name in columns))
        for learner in learners
    ]
    head = ("", *(f"{split} {name}" for split, name in columns))
    best = run.checkpoints.best
    said = [] if best is None else ["", f"The best checkpoint is that of step {best}."]
    return ["## Results", "", *table(head, rows), *said]


def _evaluations(metrics: Sequence[dict[str, Any]]) -> list[str]:
    """How validation went, a row an evaluation."""
    told = [record for record in metrics if record["split"] == "validation"]
    if len(told) < 2:
        return []
    count = min(len(told), MOST_ROWS)
    chosen = [told[round(at * (len(told) - 1) / (count - 1))] for at in range(count)]
    names = [name for name in _values(told[-1]) if name.endswith("/loss")]
    rows = [(r["step"] + 1, *(_number(r.get(name)) for name in names)) for r in chosen]
    head = ("steps", *(name.removesuffix("/loss") for name in names))
    return ["## Validation loss", "", *table(head, rows)]


def _blocks(run: RunDirectory) -> list[str]:
    rows = [
        (
            f"block{block.index}",
            block.units[0] if len(block.units) == 1 else f"{block.units[0]} to {block.units[-1]}",
            f"{block.parameters:,}",
            f"{block.boundary_bytes / 1024:,.0f}",
            f"{block.cpus:g}",
            f"{block.gpus:g}",
        )
        for block in run.plan.blocks
    ]
    head = ("", "units", "parameters", "message KiB", "CPUs", "GPUs")
    return ["## Blocks", "", *table(head, rows)]


def _work(spans: Sequence[ActorSpan]) -> list[str]:
    if not spans:
        return []
    together = concurrency(spans)
    rows = [(actor, f"{idle:.0%}") for actor, idle in idle_shares(spans).items()]
    said = (
        f"Two or more blocks at work {together.share:.0%} of the time, up to "
        f"{together.steps_apart} steps apart."
    )
    return ["## Actors", "", said, "", *table(("", "idle"), rows)]


def _happenings(run: RunDirectory) -> list[str]:
    """Incidents and changes of lanes and places, in the order of time."""
    told = [(c["at"], f"before step {c['step']}: {c['what']}") for c in run.read_changes()]
    for incident in run.read_incidents():
        lost = ", ".join(f"{loss['name']} ({loss['kind']})" for loss in incident["losses"])
        told.append(
            (
                incident["at"],
                f"after step {incident['step']}: lost {lost or 'a connection'}; "
                f"{incident['action']}, {incident['steps_lost']} steps lost",
            )
        )
    lines = [f"- {what}" for _, what in sorted(told)]
    return ["## Incidents and changes", "", *lines] if lines else []


def _values(record: dict[str, Any]) -> list[str]:
    return [key for key in record if "/" in key]


def _plain(value: float | Sequence[float]) -> str:
    """A setting that may have a value for each block."""
    return ", ".join(f"{v:g}" for v in ([value] if isinstance(value, int | float) else value))


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4g}"
