"""The pictures of a report: results with error bars, gaps by blocks, agreement with backprop."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from blocklocal.compare.summary import Row, Summary, SummaryTable
from orchestrator.record_files import replace_record, writing

MARKERS = "osD^vP*Xh<>"


def draw(summary: Summary, directory: Path) -> list[str]:
    """Write the pictures that there are numbers for; returns their names."""
    drawn = {"accuracy.png": _results(summary), "agreement.png": _agreement(summary)}
    names = []
    for name, figure in drawn.items():
        if figure is not None:
            buffer = BytesIO()
            FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
            replace_record(directory / name, [buffer.getvalue()])
            names.append(name)
        else:
            with writing(directory / name, "delete"):
                (directory / name).unlink(missing_ok=True)
    return names


def _results(summary: Summary) -> Figure | None:
    """Means with error bars, or gaps by number of blocks where several are compared."""
    tables = [t for t in summary.tables if any(r.mean is not None for r in t.rows)]
    if not tables:
        return None
    networks = list(dict.fromkeys(t.network for t in tables))
    by_blocks = len({t.count for t in tables}) > 1
    panels = [[t for t in tables if t.network == n] for n in networks] if by_blocks else tables
    rows = max(len(t.rows) for t in tables)
    figure, axes = _panels(len(panels), height=3.4 if by_blocks else 1.2 + 0.34 * rows)
    for ax, panel in zip(axes, panels, strict=True):
        if isinstance(panel, list):
            _gaps(ax, panel, summary)
        else:
            _means(ax, panel, summary)
    return figure


def _means(ax: Axes, table: SummaryTable, summary: Summary) -> None:
    rows = [r for r in table.rows if r.mean is not None]
    for at, row in enumerate(rows):
        colour = "black" if row.rule == summary.baseline else "tab:blue"
        ax.errorbar(row.mean or 0.0, at, xerr=row.std or 0.0, fmt="o", color=colour, capsize=3)
        ax.plot(list(row.values.values()), [at] * len(row.values), "|", color="gray", zorder=0)
    ax.set_yticks(range(len(rows)), [r.rule for r in rows])
    ax.invert_yaxis()
    ax.grid(axis="x", alpha=0.3)
    ax.set_xlabel(_metric(summary))
    _name(ax, table.network, table.blocks)


def _gaps(ax: Axes, tables: list[SummaryTable], summary: Summary) -> None:
    tables = sorted(tables, key=lambda t: t.count)
    for number, rule in enumerate(dict.fromkeys(r.rule for t in tables for r in t.rows)):
        points = [
            (t.count, row.gap, row.std or 0.0)
            for t in tables
            for row in t.rows
            if row.rule == rule and row.gap is not None
        ]
        if points:
            x, y, error = zip(*points, strict=True)
            marker = MARKERS[number % len(MARKERS)]
            ax.errorbar(x, y, yerr=error, marker=marker, capsize=3, label=rule)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("blocks")
    ax.set_ylabel(f"{_metric(summary)}, gap to {summary.baseline}")
    ax.grid(alpha=0.3)
    ax.legend(fontsize="small")
    _name(ax, tables[0].network)


def _agreement(summary: Summary) -> Figure | None:
    tables = [t for t in summary.tables if any(r.agreement for r in t.rows)]
    if not tables:
        return None
    figure, axes = _panels(len(tables), height=3.4)
    for ax, table in zip(axes, tables, strict=True):
        for number, row in enumerate(table.rows):
            if row.agreement:
                x, y = _line(row)
                ax.plot(x, y, marker=MARKERS[number % len(MARKERS)], label=row.rule)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel("block")
        ax.set_ylabel("cosine with backprop's gradient")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        _name(ax, table.network, table.blocks)
    return figure


def _line(row: Row) -> tuple[list[int], list[float]]:
    return [int(block.removeprefix("block")) for block in row.agreement], list(
        row.agreement.values()
    )


def _panels(count: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7, height * count), layout="constrained", dpi=120)
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _metric(summary: Summary) -> str:
    return f"{summary.split} {summary.metric}" + (" %" if summary.metric == "accuracy" else "")


def _name(ax: Axes, *names: str | None) -> None:
    known = [name for name in names if name is not None]
    if known:
        ax.set_title(", ".join(known))
