"""One setting that a sweep varies: which values it may take, read from YAML."""

from __future__ import annotations

import difflib
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from learning.errors import UserError, shown

Kind = Literal["choice", "grid", "uniform", "loguniform", "quniform", "integer"]
MOST_VALUES = 10_000
"""More than this nobody lists."""
_FARTHEST, _FINEST = 1e18, 1e-18
"""Ends of ranges, and steps within them, that whole numbers of steps can count."""
_RANGES = {"uniform": 2, "loguniform": 2, "quniform": 3, "integer": 2}
_KINDS = ("choice", "grid", *_RANGES)
_KEY = re.compile(r"^(?P<path>[A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)*)(?:\[(?P<index>[1-9]\d*)\])?$")


@dataclass(frozen=True)
class Dimension:
    """One setting that is varied.

    Attributes:
        key: dotted, `optimizer.lr`, or an entry of a list, `optimizer.lr[2]`, counted from 1.
        kind: of its values.
        values: all of them, of a choice or a grid.
        low, high: ends of a range; both are possible values.
        step: of `quniform`, whose values are multiples of it.
        when: it is there only where each of these keys has one of these values.
    """

    key: str
    kind: Kind
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: float = 0.0
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The key without an index."""
        return self.key.partition("[")[0]

    @property
    def index(self) -> int | None:
        """Which entry of a list it is, from 1; None: the whole setting."""
        found = _KEY.match(self.key)
        return int(found["index"]) if found and found["index"] else None

    @property
    def is_finite(self) -> bool:
        """Whether all its values can be listed."""
        return self.kind not in ("uniform", "loguniform")

    def listed(self) -> list[Any]:
        """All values, in order.

        Raises:
            UserError: when there are too many, or infinitely many.
        """
        if self.kind in ("choice", "grid"):
            return list(self.values)
        if self.kind in ("integer", "quniform"):
            if self.count > MOST_VALUES:
                raise UserError(
                    f"{self.key} has {self.count} values, and more than {MOST_VALUES} are not "
                    "listed: make its range smaller"
                )
            return [self.at(position) for position in range(self.count)]
        raise UserError(
            f"searcher.kind = grid cannot list {self.key}: {self.kind} has no end of values, use "
            "choice, integer or quniform"
        )

    @property
    def count(self) -> int:
        """How many values an `integer` or a `quniform` has."""
        first, last = self._ends
        return last - first + 1

    def at(self, position: int) -> float:
        """One of the values of an `integer` or a `quniform`, from 0."""
        first, _ = self._ends
        return first + position if self.kind == "integer" else self._multiple(first + position)

    @property
    def _ends(self) -> tuple[int, int]:
        """The first and the last, in steps."""
        if self.kind == "integer":
            return int(self.low), int(self.high)
        return round(self.low / self.step), round(self.high / self.step)

    def extremes(self) -> list[Any]:
        """Values that stand for all when settings are checked: all choices, ends of ranges."""
        if self.kind in ("choice", "grid"):
            return list(self.values)
        if self.kind == "integer":
            return [int(self.low), int(self.high)]
        return [self.low, self.high]

    def has(self, value: Any) -> bool:
        """Whether it may take a value."""
        if self.kind in ("integer", "quniform"):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and self.low <= value <= self.high and self.clip(value) == value
        if self.is_finite:
            return any(same(value, possible) for possible in self.listed())
        return isinstance(value, float) and self.low <= value <= self.high

    def sample(self, generator: random.Random) -> Any:
        """A value by chance."""
        if self.kind in ("choice", "grid"):
            return generator.choice(self.values)
        if self.kind in ("integer", "quniform"):
            return self.at(generator.randrange(self.count))
        if self.kind == "loguniform":
            exponent = generator.uniform(math.log(self.low), math.log(self.high))
            return self.clip(math.exp(exponent))
        return generator.uniform(self.low, self.high)

    def clip(self, value: float) -> float:
        """The nearest possible value of a range."""
        value = min(max(value, self.low), self.high)
        if self.kind == "integer":
            return round(value)
        return self._multiple(round(value / self.step)) if self.kind == "quniform" else value

    def _multiple(self, times: int) -> float:
        """A multiple of the step, within the range, without the noise of binary fractions."""
        return min(max(float(f"{times * self.step:.12g}"), self.low), self.high)


def read_dimension(key: str, written: Any) -> Dimension:
    """Read one entry of `space`.

    Args:
        written: `{loguniform: [1e-4, 0.1]}`, perhaps with `when: {other.key: value}`.

    Raises:
        UserError: one sentence for the first thing that is wrong.
    """
    if not isinstance(key, str) or not _KEY.match(key):
        raise UserError(
            f"space has the key {shown(key)}: write a dotted key, such as optimizer.lr[2]"
        )
    if not isinstance(written, Mapping):
        raise UserError(
            f"space.{key} = {shown(written)} says no values: write {key}: {{choice: [...]}} or "
            f"another of {', '.join(_KINDS)}"
        )
    kinds = [name for name in written if name != "when"]
    for name in kinds:
        if name not in _KINDS:
            near = difflib.get_close_matches(str(name), [*_KINDS, "when"], n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(_KINDS)}"
            raise UserError(f"space.{key} has the unknown word {shown(name)}: {hint}")
    if len(kinds) != 1:
        raise UserError(
            f"space.{key} has {len(kinds)} kinds of values: use one of {', '.join(_KINDS)}"
        )
    kind, when = kinds[0], _conditions(key, written.get("when", {}))
    if kind in _RANGES:
        low, high, step = _range(key, kind, written[kind])
        return Dimension(key, kind, low=low, high=high, step=step, when=when)
    values = written[kind]
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise UserError(f"space.{key}: {kind} = {shown(values)} is no list of values: write [a, b]")
    for at, value in enumerate(values):
        if any(same(value, other) for other in values[:at]):
            raise UserError(f"space.{key}: {kind} names {shown(value)} twice: leave one out")
    if kind == "grid" and when:
        raise UserError(f"space.{key}: a grid has no `when`: use choice")
    return Dimension(key, kind, values=tuple(values), when=when)


def same(a: Any, b: Any) -> bool:
    """Whether two YAML values are the same; true is not 1."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _conditions(key: str, written: Any) -> dict[str, tuple[Any, ...]]:
    if not isinstance(written, Mapping):
        raise UserError(
            f"space.{key}: when = {shown(written)} is no condition: write {{key: value}}"
        )
    return {
        name: tuple(value) if isinstance(value, list) else (value,)
        for name, value in written.items()
    }


def _range(key: str, kind: str, written: Any) -> tuple[float, float, float]:
    """Its ends, and its step or 0."""
    count = _RANGES[kind]
    shape = "[min, max, step]" if count == 3 else "[min, max]"
    if not isinstance(written, list) or len(written) != count:
        raise UserError(f"space.{key}: {kind} = {shown(written)} is no range: write {shape}")
    numbers = [_number(key, kind, value) for value in written]
    low, high = numbers[:2]
    if low > high:
        raise UserError(
            f"space.{key}: {kind} has its min {low:g} above its max {high:g}: swap them"
        )
    if kind == "loguniform" and low <= 0:
        raise UserError(f"space.{key}: loguniform begins at {low:g}: begin above 0")
    if kind == "integer" and not (low.is_integer() and high.is_integer()):
        raise UserError(
            f"space.{key}: integer = {shown(written)} has a fraction: use whole numbers"
        )
    if count == 2:
        return low, high, 0.0
    step = numbers[2]
    if step < _FINEST or round(high / step) <= round(low / step):
        raise UserError(
            f"space.{key}: the step {step:g} of quniform does not divide {low:g} to {high:g}: use "
            "one between 0 and their difference"
        )
    return low, high, step


def _number(key: str, kind: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    number = float(value) if is_number and abs(value) <= _FARTHEST else math.nan
    if not math.isfinite(number):
        raise UserError(
            f"space.{key}: {kind} has the end {shown(value)}: use a finite number up to "
            f"{_FARTHEST:g}"
        )
    return number
