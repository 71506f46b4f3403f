"""The space of a sweep: all settings that are varied, some only where others have a value."""

from __future__ import annotations

import difflib
import itertools
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Self

from learning.errors import UserError, shown
from tuning.dimensions import Dimension, read_dimension, same

Values = dict[str, Any]
"""Dotted key to value: what one trial varies."""

MOST_POINTS = 10_000
"""More than this is no grid that anyone waits for."""


class Space:
    """Settings that are varied, each after those that it depends on."""

    def __init__(self, dimensions: Sequence[Dimension]) -> None:
        """Order them.

        Raises:
            UserError: for a condition that names no key of the space, or can never hold.
        """
        by_key = {d.key: d for d in dimensions}
        for dimension in dimensions:
            for key, values in dimension.when.items():
                _check_condition(dimension, key, values, by_key)
        self.dimensions = _ordered(by_key)

    @classmethod
    def read(cls, written: Any, known: Collection[str], closed: Collection[str]) -> Self:
        """Read the section `space`.

        Args:
            known: all dotted keys of a run's configuration.
            closed: keys, or beginnings of keys that end in a dot, that a sweep may not vary.

        Raises:
            UserError: one sentence for the first thing that is wrong.
        """
        if not isinstance(written, Mapping) or not written:
            raise UserError(
                "the sweep has no space: write space: {optimizer.lr: {loguniform: [1e-4, 0.1]}}"
            )
        dimensions = [read_dimension(key, entry) for key, entry in written.items()]
        for dimension in dimensions:
            _check_key(dimension.path, known, closed)
        keys = {d.key for d in dimensions}
        for dimension in dimensions:
            if dimension.index is not None and dimension.path in keys:
                # The entries would be laid over a value that may be of another length.
                base = next(d for d in dimensions if d.key == dimension.path)
                if not base.when and not dimension.when:
                    raise UserError(
                        f"space varies {dimension.path} as a whole and its entry {dimension.key}: "
                        "leave one out, or give both a `when`"
                    )
        return cls(dimensions)

    def __iter__(self) -> Iterator[Dimension]:
        return iter(self.dimensions)

    def __getitem__(self, key: str) -> Dimension:
        return next(d for d in self.dimensions if d.key == key)

    @property
    def keys(self) -> list[str]:
        """All keys, each after those that it depends on."""
        return [d.key for d in self.dimensions]

    def choose(self, pick: Callable[[Dimension], Any]) -> Values:
        """One point of the space.

        Args:
            pick: gives the value of a setting; asked only for those that are there.
        """
        values: Values = {}
        for dimension in self.dimensions:
            if is_there(dimension, values):
                values[dimension.key] = pick(dimension)
        return values

    def sample(self, generator: random.Random) -> Values:
        """A point by chance."""
        return self.choose(lambda dimension: dimension.sample(generator))

    def samples(self, count: int, seed: int) -> list[Values]:
        """Points by chance; those of grids in turn, so that each comes up equally often.

        Raises:
            UserError: when there are fewer than the grids have points.
        """
        generator = random.Random(seed)
        grids = [d for d in self.dimensions if d.kind == "grid"]
        points_of_grid = math.prod(len(d.values) for d in grids)
        if count < points_of_grid:
            raise UserError(
                f"sweep.trials = {count} is below the {points_of_grid} points of the grid: raise "
                "it or use choice"
            )
        turns = list(itertools.product(*(d.values for d in grids)))
        points = []
        for number in range(count):
            turn = dict(zip((d.key for d in grids), turns[number % len(turns)], strict=True))
            points.append(
                self.choose(
                    lambda d, turn=turn: turn[d.key] if d.key in turn else d.sample(generator)
                )
            )
        return points

    def grid(self) -> list[Values]:
        """All points; those that differ only in what is not there are one.

        Raises:
            UserError: for a range without steps, or too many points.
        """
        points: list[Values] = [{}]
        for dimension in self.dimensions:
            listed = dimension.listed()
            wider_by = sum(len(listed) if is_there(dimension, point) else 1 for point in points)
            if wider_by > MOST_POINTS:
                raise UserError(
                    f"the grid has more than {MOST_POINTS} points: vary less, or use "
                    "searcher.kind = random"
                )
            points = [
                wider
                for point in points
                for wider in (
                    [{**point, dimension.key: value} for value in listed]
                    if is_there(dimension, point)
                    else [point]
                )
            ]
        return points

    def corners(self, branches: Collection[str] = ()) -> Iterator[Values]:
        """Points that stand for all when settings are checked before a sweep.

        For each combination of the choices that decide what else there is: one point for each
        extreme value of each other setting.

        Args:
            branches: further keys whose values are all combined.
        """
        decisive = {key for d in self.dimensions for key in d.when}
        decisive |= {d.key for d in self.dimensions if d.key.endswith(".kind") and d.is_finite}
        decisive |= {d.key for d in self.dimensions if d.key in branches and d.is_finite}
        trunk = [d for d in self.dimensions if d.key in decisive]
        seen: set[str] = set()
        combined = itertools.product(*(_decisive_values(d) for d in trunk))
        for combination in itertools.islice(combined, MOST_POINTS):
            fixed = {d.key: value for d, value in zip(trunk, combination, strict=True)}
            plain = self.choose(lambda d, fixed=fixed: fixed.get(d.key, d.extremes()[0]))
            if repr(plain) in seen:
                continue
            seen.add(repr(plain))
            yield plain
            for key in plain:
                if key not in decisive:
                    for value in self[key].extremes()[1:]:
                        yield {**plain, key: value}


def is_there(dimension: Dimension, values: Values) -> bool:
    """Whether a setting is varied, given the values of those that it depends on."""
    return all(
        key in values and any(same(values[key], value) for value in possible)
        for key, possible in dimension.when.items()
    )


def _decisive_values(dimension: Dimension) -> list[Any]:
    return dimension.listed() if dimension.is_finite else dimension.extremes()


def _check_key(path: str, known: Collection[str], closed: Collection[str]) -> None:
    for beginning in closed:
        if path == beginning or (beginning.endswith(".") and path.startswith(beginning)):
            raise UserError(
                f"space varies {path}, which belongs to the sweep as a whole: set it outside space"
            )
    if path.startswith("network.arguments."):
        return
    if path not in known:
        near = difflib.get_close_matches(path, list(known), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "see docs/configuration.md for all keys"
        raise UserError(f"unknown setting {path} in space: {hint}")
    if any(key.startswith(f"{path}.") for key in known):
        raise UserError(f"space varies {path}, which is a section: vary {path}.<key>")


def _check_condition(
    dimension: Dimension, key: str, values: Sequence[Any], by_key: Mapping[str, Dimension]
) -> None:
    what = f"space.{dimension.key}: when names {key}"
    if key == dimension.key:
        raise UserError(f"{what}, itself: name another key")
    if key not in by_key:
        near = difflib.get_close_matches(str(key), list(by_key), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"name one of {', '.join(by_key)}"
        raise UserError(f"{what}, which space does not vary: {hint}")
    other = by_key[key]
    if not other.is_finite:
        raise UserError(f"{what}, a {other.kind}: only choices and whole numbers decide")
    for value in values:
        listed = other.listed()
        if not any(same(value, possible) for possible in listed):
            near = difflib.get_close_matches(str(value), [str(v) for v in listed], n=1)
            hint = f"did you mean {near[0]}?" if near else f"it takes {listed}"
            raise UserError(f"{what} = {shown(value)}, which it never is: {hint}")


def _ordered(by_key: Mapping[str, Dimension]) -> list[Dimension]:
    """Each after those that it depends on, else as written.

    Raises:
        UserError: for a circle.
    """
    ordered: list[Dimension] = []
    waiting = list(by_key.values())
    while waiting:
        done = {d.key for d in ordered}
        ready = next((d for d in waiting if set(d.when) <= done), None)
        if ready is None:
            circle = " and ".join(d.key for d in waiting)
            raise UserError(f"space: {circle} depend on each other: drop one `when`")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered
