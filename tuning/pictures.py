"""Pictures of a sweep: learning curves, parallel coordinates, how much each setting matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from orchestrator.record_files import replace_record
from tuning.dimensions import Dimension, same
from tuning.outcome import PICTURES
from tuning.records import Outcome
from tuning.settings import Mode
from tuning.space import Space

LEAST_TRIALS = 8
"""Of fewer nothing can be said about what matters."""
_ABSENT = -0.08  # where a setting stands that a trial does not have


def draw(
    directory: Path, outcomes: Sequence[Outcome], space: Space, metric: str, mode: Mode
) -> list[Path]:
    """Draw what can be drawn; returns the files."""
    matplotlib.use("Agg")
    told = [o for o in outcomes if o.last(metric) is not None and o.status != "failed"]
    made: list[Path] = []
    if not told:
        return made
    curves, parallel, importance = (directory / name for name in PICTURES)
    _save(_curves(told, metric, mode), curves)
    _save(_parallel(told, space, metric, mode), parallel)
    made += [curves, parallel]
    shares = importances(told, space, metric)
    if shares:
        _save(_bars(shares, metric), importance)
        made.append(importance)
    return made


def importances(outcomes: Sequence[Outcome], space: Space, metric: str) -> dict[str, float]:
    """How much each setting matters for the metric: the share of a forest's skill that it carries.

    A random forest learns the metric from the settings and from how long a trial trained; a
    setting's importance is how much worse it explains the trials with that column shuffled
    (Breiman 2001). Empty where there are too few trials, or they are all alike.
    """
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    told = [o for o in outcomes if o.last(metric) is not None]
    values = np.array([o.last(metric) for o in told], dtype=float)
    varied = [d for d in space if len({repr(o.values.get(d.key)) for o in told}) > 1]
    if len(told) < LEAST_TRIALS or not varied or np.ptp(values) == 0:
        return {}
    columns = [[position(d, o) for o in told] for d in varied]
    steps = [float(o.evaluations[-1].steps) for o in told]
    table = np.array([*columns, steps]).T
    forest = RandomForestRegressor(n_estimators=200, random_state=0, n_jobs=1)
    forest.fit(table, values)
    found = permutation_importance(forest, table, values, n_repeats=20, random_state=0)
    means = np.maximum(np.asarray(found["importances_mean"], dtype=float), 0.0)
    total = float(means.sum())
    if total <= 0:
        return {}
    names = [*(d.key for d in varied), "steps trained"]
    shares = {name: float(mean) / total for name, mean in zip(names, means, strict=True)}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def position(dimension: Dimension, outcome: Outcome) -> float:
    """Where a trial stands on a setting's axis, 0 to 1; below 0 where it does not have it."""
    if dimension.key not in outcome.values:
        return _ABSENT
    value = outcome.values[dimension.key]
    if dimension.kind in ("choice", "grid"):
        at = next((i for i, v in enumerate(dimension.values) if same(v, value)), 0)
        return at / max(1, len(dimension.values) - 1)
    low, high = dimension.low, dimension.high
    if dimension.kind == "loguniform":
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (value - low) / (high - low) if high > low else 0.5


def _curves(outcomes: Sequence[Outcome], metric: str, mode: Mode) -> Figure:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    colours, scale = _colours(outcomes, metric, mode)
    for outcome in outcomes:
        told = [(e.steps, e.metrics[metric]) for e in outcome.evaluations if metric in e.metrics]
        steps, values = zip(*told, strict=True)
        colour = colours(scale(outcome.last(metric) or 0.0))
        axes.plot(steps, values, color=colour, linewidth=1.2, alpha=0.8)
        axes.plot(steps[-1:], values[-1:], ".", color=colour, markersize=5)
    axes.set_xlabel("steps")
    axes.set_ylabel(metric)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _parallel(outcomes: Sequence[Outcome], space: Space, metric: str, mode: Mode) -> Figure:
    dimensions = list(space)
    figure = Figure(figsize=(2 + 1.7 * len(dimensions), 4.6), layout="constrained")
    axes = figure.add_subplot()
    colours, scale = _colours(outcomes, metric, mode)
    last = len(dimensions)
    for outcome in sorted(outcomes, key=lambda o: o.last(metric) or 0.0):
        value = outcome.last(metric) or 0.0
        heights = [position(d, outcome) for d in dimensions]
        line = [*heights, float(scale(value))]
        axes.plot(range(last + 1), line, color=colours(scale(value)), linewidth=1.2, alpha=0.75)
    for at, dimension in enumerate(dimensions):
        axes.axvline(at, color="black", linewidth=0.8)
        for height, text in _ticks(dimension):
            _label(axes, at, height, text)
        if dimension.when:
            _label(axes, at, _ABSENT, "none")
    axes.axvline(last, color="black", linewidth=0.8)
    for height in (0.0, 1.0):
        _label(axes, last, height, f"{scale.inverse(height):.4g}")
    axes.set_xticks(
        range(last + 1), [*(d.key for d in dimensions), metric], rotation=18, ha="right"
    )
    axes.set_yticks([])
    axes.set_ylim(-0.14, 1.08)
    axes.spines[:].set_visible(False)
    return figure


def _ticks(dimension: Dimension) -> list[tuple[float, str]]:
    if dimension.kind in ("choice", "grid"):
        count = max(1, len(dimension.values) - 1)
        return [(at / count, str(value)) for at, value in enumerate(dimension.values)]
    return [(0.0, f"{dimension.low:.4g}"), (1.0, f"{dimension.high:.4g}")]


def _label(axes: Axes, at: int, height: float, text: str) -> None:
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}
    axes.text(at + 0.03, height, text, fontsize=7, va="center", bbox=box)


def _bars(shares: dict[str, float], metric: str) -> Figure:
    figure = Figure(figsize=(7, 0.9 + 0.36 * len(shares)), layout="constrained")
    axes = figure.add_subplot()
    names = list(shares)[::-1]
    bars = axes.barh(names, [shares[name] for name in names], color=colormaps["viridis"](0.4))
    axes.bar_label(bars, [f"{shares[name]:.0%}" for name in names], padding=3, fontsize=8)
    axes.set_xlabel(f"share of what explains {metric}")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _colours(outcomes: Sequence[Outcome], metric: str, mode: Mode) -> tuple[Colormap, Normalize]:
    """Colours by value; the best are dark."""
    values = [o.last(metric) or 0.0 for o in outcomes]
    low, high = min(values), max(values)
    colours = colormaps["viridis_r" if mode == "max" else "viridis"]
    return colours, Normalize(low, high if high > low else low + 1e-9)


def _save(figure: Figure, path: Path) -> None:
    picture = BytesIO()
    figure.savefig(picture, dpi=110, format="png")
    replace_record(path, [picture.getvalue()])
