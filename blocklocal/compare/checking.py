"""What a record of a study must be: whatever a report reads of it has the type that it expects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from learning.errors import shown

_SAID = ("command", "processor", "cores")
_COUNTS = ("extra_parameters", "flops", "backprop_flops")
_BYTES = ("bytes_forward", "bytes_back", "bytes_beside")
_MOST = 1e24
"""Larger than any number of a run, and small enough to be computed with."""


def check_run(record: Any) -> dict[str, Any]:
    """The record of a run.

    Raises:
        TypeError: for anything else, with what is wrong.
    """
    _check_head(record)
    _numbers("metrics", _section(record, "metrics"))
    if type(record.get("labels", 1)) is not int:
        raise TypeError(f"labels is {shown(record['labels'], 40)}, not a number of labels")
    curve = record.get("curve", [])
    if not isinstance(curve, list) or not all(isinstance(row, dict) for row in curve):
        raise TypeError("curve is no list of what was measured")
    for row in curve:
        _numbers("curve", row)
    return record


def check_costs(record: Any) -> dict[str, Any]:
    """The record of what a combination costs.

    Raises:
        TypeError: for anything else, with what is wrong.
    """
    _check_head(record)
    costs = _section(record, "costs")
    kept = costs.get("activation_bytes")
    if not isinstance(kept, list) or not kept:
        raise TypeError("activation_bytes is no list of numbers")
    _counts((name, costs.get(name)) for name in (*_COUNTS, *_BYTES))
    _counts(("activation_bytes", value) for value in kept)
    return record


def _check_head(record: Any) -> None:
    if not isinstance(record, dict) or not all(
        isinstance(record.get(name), dict) for name in ("settings", "code")
    ):
        raise TypeError("it is no record of a run: no settings and code")
    said = {name: record.get(name) for name in _SAID}
    for name, value in {**said, **record["code"]}.items():
        kind = {"cores": int | None, "git_dirty": bool | None}.get(name, str | None)
        if not isinstance(value, kind):
            raise TypeError(f"{shown(name, 40)} is {shown(value, 40)}, not what it should be")


def _section(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = record.get(name)
    if not isinstance(found, dict):
        raise TypeError(f"it has no {name}")
    return found


def _numbers(where: str, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if type(value) not in (int, float) or not -_MOST < value < _MOST:
            raise TypeError(f"{shown(name, 40)} of {where} is {shown(value, 40)}, not a number")


def _counts(values: Iterable[tuple[str, Any]]) -> None:
    for name, value in values:
        if type(value) is not int or not 0 <= value < _MOST:
            raise TypeError(f"{name} is {shown(value, 40)}, not a whole number")
