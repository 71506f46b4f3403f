"""The picture of a run's losses: a panel for training, one for validation, a line a learner."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from orchestrator.record_files import replace_record

POINTS = 200
"""Of a line at most: each is a mean over as many steps as it takes."""


def draw_curves(metrics: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the records of `metrics.jsonl` that have losses; `path` is a PNG."""
    splits = [s for s in ("train", "validation") if any(r["split"] == s for r in metrics)]
    figure = Figure(figsize=(6 * max(1, len(splits)), 3.8), layout="constrained")
    panels = figure.subplots(1, max(1, len(splits)), squeeze=False)[0]
    for axes, split in zip(panels, splits, strict=False):
        _panel(axes, split, [r for r in metrics if r["split"] == split])
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    replace_record(path, [buffer.getvalue()])


def _panel(axes: Axes, split: str, records: Sequence[dict[str, Any]]) -> None:
    names = dict.fromkeys(k for r in records for k in r if k.endswith("/loss"))
    for name in names:
        told = [(r["step"] + 1, r[name]) for r in records if name in r]
        parts = np.array_split(np.array(told, dtype=float), min(POINTS, len(told)))
        steps, losses = np.array([part.mean(axis=0) for part in parts]).T
        mark = "." if len(steps) < 30 else ""
        axes.plot(steps, losses, marker=mark, linewidth=1.2, label=name.removesuffix("/loss"))
    axes.set_xlabel("steps")
    axes.set_ylabel(f"{split} loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if names:
        axes.legend(fontsize=8, frameon=False, ncols=1 + len(names) // 10)
