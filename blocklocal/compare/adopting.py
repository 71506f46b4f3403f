"""Adopting runs that were made elsewhere, or before there were studies."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blocklocal.compare.checking import check_run
from blocklocal.compare.records import CODE, Record, same_settings
from blocklocal.compare.study import Combination
from learning.errors import UserError

LABELS = ("rule", "network", "blocks", "seed")
PARTS = ("settings", "metrics")
"""What a run must have."""


def read_runs(path: Path) -> list[Record]:
    """Runs of a file: one record, a list of records, or {"environment": ..., "runs": [...]}.

    A record has `settings`, `metrics`, `seconds` and `code`; code and machine of the environment
    hold for the runs that do not say their own.

    Raises:
        UserError: when the file cannot be read or holds anything else.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): give an existing file") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}): give a file of runs") from error
    environment: dict[str, Any] = {}
    if isinstance(content, dict) and "runs" in content:
        environment, content = _section(content, "environment"), content["runs"]
    runs = content if isinstance(content, list) else [content]
    machine = {n: environment[n] for n in ("command", "processor", "cores") if n in environment}
    complete = []
    for run in runs:
        if not isinstance(run, dict) or not all(isinstance(run.get(p), dict) for p in PARTS):
            raise UserError(
                f"{path} holds something that is no run (no settings and metrics): give a file of "
                "runs"
            )
        code = _section(run, "code") or _section(environment, "code")
        kept = {name: code.get(name) for name in CODE}
        try:
            complete.append(check_run({**machine, **run, "code": kept}))
        except TypeError as error:
            raise UserError(f"{path} holds a damaged run ({error}): give a file of runs") from error
    return complete


def _section(content: dict[str, Any], name: str) -> dict[str, Any]:
    found = content.get(name)
    return found if isinstance(found, dict) else {}


def belonging(
    runs: Iterable[Record], combinations: Iterable[Combination], seeds: Iterable[int]
) -> list[tuple[Combination, int, Record]]:
    """The runs that are those of a study, with their combination and seed."""
    wanted = [(c, seed, c.config(seed)) for seed in seeds for c in combinations]
    found = []
    for run in runs:
        for combination, seed, config in wanted:
            if same_settings(run["settings"], config):
                rest = {n: v for n, v in run.items() if n not in LABELS}
                found.append((combination, seed, labels_of(combination, seed) | rest))
                break
    return found


def labels_of(combination: Combination, seed: int) -> Record:
    """What a record says for people: which run of the study it is."""
    return dict(zip(LABELS, (*combination.key, seed), strict=True))
