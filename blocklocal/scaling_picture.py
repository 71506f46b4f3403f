"""The picture of a prediction: steps/s and efficiency over the number of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO

MARKERS = "osD^vP*Xh<>"


def draw(series: Mapping[str, Sequence[tuple[int, float, float]]]) -> bytes:
    """Draw a PNG.

    Args:
        series: schedule to (devices, steps/s, efficiency); efficiency is speed-up a device.
    """
    # Here, not above: it takes a second, and only pictures need it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained", dpi=120)
    rates, shares = figure.subplots(1, 2)
    for i, (name, points) in enumerate(series.items()):
        devices = [n for n, _, _ in points]
        style = {"marker": MARKERS[i % len(MARKERS)], "markersize": 5, "label": name}
        rates.plot(devices, [rate for _, rate, _ in points], **style)
        shares.plot(devices, [share for _, _, share in points], **style)
    ticks = sorted({n for points in series.values() for n, _, _ in points})
    for ax, title in ((rates, "steps/s"), (shares, "speed-up a device")):
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, [str(n) for n in ticks])
        ax.set_xlabel("devices, each with a block of the same size")
        ax.set_title(title)
        ax.grid(alpha=0.3)
    rates.set_yscale("log")
    shares.set_ylim(0)
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
