"""The timeline of a run: a picture with one row an actor and one bar an operation."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from actors.operations import Kind
from learning.errors import UserError
from orchestrator.record_files import replace_record
from orchestrator.trace import (
    EVALUATION,
    TRAINING,
    ActorSpan,
    actors_of,
    block_of,
    concurrency,
    idle_shares,
    kin_of,
)

PALETTE = (
    "#4E79A7",
    "#F28E2B",
    "#59A14F",
    "#E15759",
    "#76B7B2",
    "#B07AA1",
    "#EDC948",
    "#9C755F",
)
"""Colours of the steps; neighbours differ strongly and the cycle is longer than a pipeline."""


class _Style(NamedTuple):
    label: str
    white: float = 0.0  # share of white mixed into the colour of the step
    hatch: str = ""


_STYLES: dict[str, _Style] = {
    Kind.BATCH: _Style("make a batch", 0.3),
    Kind.FORWARD: _Style("forward F"),
    Kind.ASSESS: _Style("own loss L", hatch="///"),
    Kind.GRADIENT: _Style("gradient G", hatch="\\\\\\"),
    Kind.UPDATE: _Style("update U", hatch="xxx"),
    Kind.TABLE: _Style("table B", 0.55),
    Kind.READOUT: _Style("readout R", 0.55, "..."),
    Kind.FEEDBACK_UPDATE: _Style("feedback update V", 0.55, "xxx"),
    Kind.EVALUATE: _Style("evaluation E", 0.85, "---"),
    Kind.TALLY: _Style("tally T", 0.85, "|||"),
    Kind.SNAPSHOT: _Style("snapshot S", 0.85, "ooo"),
    Kind.PUBLISH: _Style("publish weights P", 0.7, "///"),
    Kind.READ: _Style("read weights W", 0.7, "\\\\\\"),
    Kind.HAND_OVER: _Style("hand over H", 0.7, "+++"),
    Kind.JOIN: _Style("join J", 0.7, "***"),
    Kind.RESEND: _Style("send again N", 0.7, "..."),
    Kind.LEAVE: _Style("leave Q", 0.7, "ooo"),
}
_WAIT = "#C4C4C4"
_WIDTH, _DPI, _FONT = 16.0, 120, 10.0
_LEFT, _RIGHT = 0.115, 0.985  # edges of the axes, shares of the width of the figure


def step_colour(step: int, white: float = 0.0) -> str:
    """Give the colour of a step as #rrggbb, with a share `white` (0 to 1) of white mixed in."""
    red, green, blue = (part + (1 - part) * white for part in to_rgb(PALETTE[step % len(PALETTE)]))
    return to_hex((red, green, blue))


def training_window(spans: Sequence[ActorSpan], steps: int = 6) -> tuple[float, float]:
    """Choose a stretch of `steps` training steps of the first block, next to the run's middle.

    A stretch without an evaluation of any actor is preferred. A run with fewer steps is shown from
    the first to the end, one without any training as a whole.

    Returns:
        Begin and end in seconds from the first span of the run.
    """
    first, last = min(span.started for span in spans), max(span.ended for span in spans)
    training = [span for span in spans if span.kind in TRAINING]
    if not training:
        return 0.0, (last - first) / 1e9
    leader = actors_of(training)[0]
    begins: dict[int, int] = {}
    for span in training:
        if span.actor == leader:
            begins[span.step] = min(span.worked_from, begins.get(span.step, span.worked_from))
    bounds = [*sorted(begins.values()), max(span.ended for span in training)]
    width = min(steps, len(bounds) - 1)
    stretches = list(zip(bounds[:-width], bounds[width:], strict=True))
    tests = [span for span in spans if span.kind in EVALUATION]
    starts, ends = sorted(span.worked_from for span in tests), sorted(span.ended for span in tests)
    # An evaluation overlaps unless it ended before the begin or starts after the end.
    clean = [(a, b) for a, b in stretches if bisect_left(starts, b) == bisect_right(ends, a)]
    twice_middle = bounds[0] + bounds[-1]  # whole numbers: floats round Unix nanoseconds
    begin, end = min(clean or stretches, key=lambda ab: abs(sum(ab) - twice_middle))
    return (begin - first) / 1e9, (end - first) / 1e9


def draw(
    spans: Sequence[ActorSpan], path: str | Path, window: tuple[float, float] | None = None
) -> None:
    """Draw the timeline as a PNG: one row an actor, one bar an operation, one colour a step.

    Args:
        spans: all spans of the run: the shares in the title and at the rows are those of the run.
        path: file to write.
        window: begin and end of what to show in seconds from the first span of the run; by default
            about six training steps of block 1 in the middle of the run.

    Raises:
        UserError: when there is nothing to draw, or the file cannot be written.
    """
    if not spans:
        raise UserError("0 spans cannot be drawn: use the spans.jsonl of a run of at least 1 step")
    begin, end = training_window(spans) if window is None else window
    first = min(span.started for span in spans)
    shown = [s for s in spans if s.ended > first + begin * 1e9 and s.started < first + end * 1e9]
    if not shown or end <= begin:
        length = (max(span.ended for span in spans) - first) / 1e9
        raise UserError(
            f"no operation lies between {begin:g} s and {end:g} s: choose a window within "
            f"0 s and {length:g} s, the run"
        )
    unit, scale = ("s", 1e9) if end - begin >= 2 else ("ms", 1e6)
    rows = _rows(actors_of(spans))
    lowest = max(rows.values())
    height = 1.9 + 0.5 * (lowest + 1)
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI)
    # Fixed edges instead of a layout engine: the texts need the width of the axes beforehand.
    axes = figure.add_axes((_LEFT, 1.15 / height, _RIGHT - _LEFT, 1 - 1.65 / height))
    axes.set_xlim(begin * 1e9 / scale, end * 1e9 / scale)
    axes.set_ylim(lowest + 0.6, -0.6)
    _draw_bars(axes, shown, rows, first, scale)
    _label(axes, spans, rows)
    axes.set_xlabel(f"time since the start of the run [{unit}]", fontsize=_FONT + 1)
    picture = BytesIO()
    figure.savefig(picture, format="png")
    replace_record(Path(path), [picture.getvalue()])


def _rows(actors: Sequence[str]) -> dict[str, float]:
    """Place the actors from the top down, with gaps between source, blocks, feedback and lanes."""
    rows: dict[str, float] = {}
    at = 0.0
    for before, actor in zip(["", *actors[:-1]], actors, strict=True):
        if before and kin_of(before)[:2] != kin_of(actor)[:2]:
            at += 0.35
        rows[actor] = at
        at += 1
    return rows


def _draw_bars(
    axes: Axes, spans: Sequence[ActorSpan], rows: dict[str, float], first: int, scale: float
) -> None:
    # One artist for all bars of a look, not one a bar: long windows stay fast.
    looks: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    waits: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for span in spans:
        style = _STYLES[span.kind]
        start, length = (span.worked_from - first) / scale, span.worked / scale
        colour = step_colour(span.step, style.white)
        looks[span.actor, colour, style.hatch].append((start, length))
        if span.waited > 0:
            waits[span.actor].append(((span.started - first) / scale, span.waited / scale))
        if span.blocked > 0:
            waits[span.actor].append(((span.worked_to - first) / scale, span.blocked / scale))
        _write(axes, span, start, length, rows[span.actor], colour)
    for actor, bars in waits.items():
        axes.broken_barh(bars, (rows[actor] - 0.04, 0.08), facecolor=_WAIT, linewidth=0)
    for (actor, colour, hatch), bars in looks.items():
        axes.broken_barh(
            bars, (rows[actor] - 0.4, 0.8), facecolor=colour, edgecolor="#333333",
            linewidth=0.5, hatch=hatch, hatch_linewidth=0.5,
        )  # fmt: skip


def _write(
    axes: Axes, span: ActorSpan, start: float, length: float, row: float, colour: str
) -> None:
    """Write the step, with the kind where there is room, into the visible part of a bar."""
    left, right = axes.get_xlim()
    a, b = max(start, left), min(start + length, right)
    points = (b - a) / (right - left) * _WIDTH * (_RIGHT - _LEFT) * 72
    names = (f"{span.kind} {span.step}", str(span.step))
    text = next((name for name in names if len(name) * _FONT * 0.62 + 3 < points), None)
    if text is not None:
        # The outline in the colour of the bar keeps hatches out of the digits.
        outline = [withStroke(linewidth=4, foreground=colour)]
        axes.text(
            (a + b) / 2, row, text, ha="center", va="center_baseline", fontsize=_FONT,
            path_effects=outline, color="black", zorder=3,
        )  # fmt: skip


def _label(axes: Axes, spans: Sequence[ActorSpan], rows: dict[str, float]) -> None:
    idle = idle_shares(spans)
    axes.set_yticks(
        list(rows.values()),
        [f"{actor}  (idle {idle[actor]:.0%})" for actor in rows],
        fontsize=_FONT + 1,
    )
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=_FONT)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    blocks = [share for actor, share in idle.items() if block_of(actor) is not None]
    if blocks:
        share, apart = concurrency(spans)
        axes.set_title(
            f"over the whole run: blocks idle {sum(blocks) / len(blocks):.0%} on average, two or "
            f"more at work {share:.0%} of the time, up to {apart} step{'s'[: apart != 1]} apart",
            fontsize=_FONT + 3, loc="left",
        )  # fmt: skip
    kinds = {span.kind for span in spans}
    handles = [
        Patch(
            facecolor=str(0.62 + 0.38 * style.white), edgecolor="#333333", linewidth=0.5,
            hatch=style.hatch, hatch_linewidth=0.5, label=style.label,
        )
        for kind, style in _STYLES.items()
        if kind in kinds
    ]  # fmt: skip
    handles.append(Patch(facecolor=_WAIT, label="waiting (thin)"))
    handles.append(Patch(facecolor="none", edgecolor="none", label="colour and number: step"))
    axes.figure.legend(
        handles=handles, loc="lower center", ncol=min(len(handles), 7), frameon=False,
        fontsize=_FONT, handlelength=2.6, handleheight=1.2, columnspacing=1.4,
    )  # fmt: skip
