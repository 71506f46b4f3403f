"""What a sweep leaves behind: tables of its trials, and the configuration of the best."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learning.errors import UserError
from learning.yaml_files import write_yaml
from orchestrator.pages import table
from orchestrator.record_files import replace_record
from tuning.records import Outcome
from tuning.settings import Mode, SweepSettings
from tuning.space import Space

TABLE, PAGE, BEST = "trials.csv", "report.md", "best.yaml"
PICTURES = ("curves.png", "parallel.png", "importance.png")
_SHOWN = 25  # rows of the page; the csv has all


def best_of(
    outcomes: Sequence[Outcome], metric: str, mode: Mode, enough: float | None = None
) -> Outcome | None:
    """The best trial: of those that were good enough, else that trained to the end, else of all.

    A trial that was stopped early may look better than it would have become, or worse; one that
    was good enough ended the sweep by that.

    Args:
        enough: the value of the metric that ends a sweep, if one does.
    """
    rest = [o for o in outcomes if o.status != "failed" and o.last(metric) is not None]
    good = [o for o in rest if enough is not None and is_enough(o.last(metric), enough, mode)]
    done = [o for o in rest if o.status == "finished"]
    ranked = ranking(good or done or rest, metric, mode)
    return ranked[0] if ranked else None


def is_enough(value: float | None, enough: float, mode: Mode) -> bool:
    """Whether a metric is as good as was asked for."""
    return value is not None and (value >= enough if mode == "max" else value <= enough)


def ranking(outcomes: Sequence[Outcome], metric: str, mode: Mode) -> list[Outcome]:
    """Trials by their last value, the best first; those that trained longer first among equals."""
    sign = -1.0 if mode == "max" else 1.0

    def key(outcome: Outcome) -> tuple[bool, bool, float, int, int]:
        value = outcome.last(metric)
        failed = outcome.status in ("failed", "lost")
        steps = outcome.evaluations[-1].steps if outcome.evaluations else 0
        return failed, value is None, sign * (value or 0.0), -steps, outcome.number

    return sorted(outcomes, key=key)


def write_table(path: Path, outcomes: Sequence[Outcome], keys: Sequence[str], metric: str) -> None:
    """Write all trials as CSV, by number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["trial", "status", "steps", metric, *keys, "run", "why"])
    for outcome in sorted(outcomes, key=lambda o: o.number):
        value = outcome.last(metric)
        writer.writerow(
            [
                outcome.number,
                outcome.status,
                outcome.evaluations[-1].steps if outcome.evaluations else 0,
                "" if value is None else value,
                *(_cell(outcome.values[key]) if key in outcome.values else "" for key in keys),
                "" if outcome.run is None else outcome.run.name,
                outcome.why,
            ]
        )
    replace_record(path, [file.getvalue().encode()])


def write_best(path: Path, tree: Mapping[str, Any], best: Outcome, metric: str) -> None:
    """Write the configuration that trains the best trial again.

    Args:
        tree: of that configuration.
    """
    value = best.last(metric)
    note = (
        f"# Trial {best.number:04d}: {metric} {value} after {best.evaluations[-1].steps} steps.\n"
    )
    if best.status != "finished":
        note += "# It was stopped there; this trains it to the end.\n"
    text = write_yaml(dict(tree))
    replace_record(path, [(note + text).encode()])


def write_page(
    path: Path,
    name: str,
    outcomes: Sequence[Outcome],
    space: Space,
    settings: SweepSettings,
    pictures: Sequence[Path],
) -> None:
    """Write a page about a sweep: how its trials ended, the best ones, pictures."""
    metric, mode = settings.metric, settings.better
    best = best_of(outcomes, metric, mode, settings.stop.value)
    counts = {s: sum(o.status == s for o in outcomes) for s in dict.fromkeys(_statuses(outcomes))}
    told = ", ".join(f"{count} {status}" for status, count in counts.items())
    lines = [
        f"# Sweep {name}",
        "",
        f"{len(outcomes)} trials: {told}. {metric}, {mode} is better; searcher "
        f"{settings.searcher.kind}, scheduler {settings.scheduler.kind}.",
        "",
    ]
    if best is not None:
        lines += [
            f"The best is trial {best.number:04d}, {metric} {best.last(metric):.6g}: "
            f"`blocklocal train {BEST}` trains it again.",
            "",
        ]
    keys = space.keys
    shown = ranking(outcomes, metric, mode)[:_SHOWN]
    rows = [
        (
            f"{outcome.number:04d}",
            "" if (value := outcome.last(metric)) is None else f"{value:.6g}",
            outcome.evaluations[-1].steps if outcome.evaluations else 0,
            outcome.status,
            *(_short(outcome.values[k]) if k in outcome.values else "" for k in keys),
        )
        for outcome in shown
    ]
    lines += [*table(("trial", metric, "steps", "status", *keys), rows), ""]
    if len(shown) < len(outcomes):
        lines += [f"The other {len(outcomes) - len(shown)} are in {TABLE}.", ""]
    for outcome in outcomes:
        if outcome.why:
            lines += [f"- trial {outcome.number:04d} {outcome.status}: {outcome.why}"]
    lines += ["", *(f"![{p.stem}]({p.name})\n" for p in pictures)]
    replace_record(path, ["\n".join(lines).rstrip().encode() + b"\n"])


def check_has_best(best: Outcome | None, outcomes: Sequence[Outcome]) -> Outcome:
    """The best trial.

    Raises:
        UserError: when every trial failed.
    """
    if best is None:
        why = next((o.why for o in outcomes if o.why), "no trial has an evaluation")
        raise UserError(f"no trial of the sweep could be trained ({why}): change its space")
    return best


def _statuses(outcomes: Sequence[Outcome]) -> list[str]:
    order = ("finished", "stopped", "failed", "lost", "unfinished")
    return sorted((o.status for o in outcomes), key=order.index)


def _cell(value: Any) -> Any:
    return value if isinstance(value, int | float | str) else write_yaml(value).strip()


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(_cell(value))
