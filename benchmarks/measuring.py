"""Measuring on a machine that is not quiet: interleaved repeats, medians, ratios within a repeat.

Contenders run one after the other in every repeat, in an order that is rotated from repeat to
repeat, so that what slows the machine for a while slows all of them. Two contenders are compared by
the ratio of their rates in the same repeat; the median of these ratios is reported.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict

import psutil

LOOKING_SECONDS = 0.5  # how long the idle machine is watched before a repeat


class Sample(TypedDict):
    """What one contender did in one repeat: its rate in units a second, and what else it tells."""

    rate: float
    details: dict[str, Any]


class Repeat(TypedDict):
    """One run of all contenders.

    Attributes:
        busy_cores: cores that other work kept busy just before.
        load_average: the system's, over the last minute.
        stolen_s: CPU seconds that the host of a virtual machine took during the repeat.
        order: of the contenders.
    """

    busy_cores: float
    load_average: float
    stolen_s: float
    order: list[str]
    samples: dict[str, Sample]


Contenders = Mapping[str, Callable[[], Sample]]


def rotated(names: Sequence[str], repeat: int, repeats: int) -> list[str]:
    """The order of one repeat; over all repeats each contender runs early, late and between."""
    start = repeat * len(names) // repeats
    return [*names[start:], *names[:start]]


def interleaved(
    contenders: Contenders, repeats: int, watch: Callable[[str], None] = print
) -> list[Repeat]:
    """Run all contenders `repeats` times.

    Args:
        watch: told a line for each repeat that is done.
    """
    done: list[Repeat] = []
    for i in range(repeats):
        order = rotated(list(contenders), i, repeats)
        busy, load = system_load()
        stolen = _stolen()
        samples = {name: contenders[name]() for name in order}
        done.append(
            {
                "busy_cores": busy,
                "load_average": load,
                "stolen_s": _stolen() - stolen,
                "order": order,
                "samples": {name: samples[name] for name in contenders},
            }
        )
        watch(
            f"repeat {i + 1} of {repeats}, {busy:.2f} cores busy before: "
            + ", ".join(f"{name} {samples[name]['rate']:.4g}/s" for name in contenders)
        )
    return done


def system_load() -> tuple[float, float]:
    """Cores busy during `LOOKING_SECONDS` in which nothing is measured, and the load average."""
    share = psutil.cpu_percent(interval=LOOKING_SECONDS) / 100
    return share * (psutil.cpu_count() or 1), psutil.getloadavg()[0]


def _stolen() -> float:
    return getattr(psutil.cpu_times(), "steal", 0.0)  # Linux only


def rates(repeats: Sequence[Repeat], name: str) -> list[float]:
    """The rates of one contender, by repeat."""
    return [repeat["samples"][name]["rate"] for repeat in repeats]


def ratios(repeats: Sequence[Repeat], name: str, other: str) -> list[float]:
    """The rate of one contender over that of another, by repeat."""
    pairs = zip(rates(repeats, name), rates(repeats, other), strict=True)
    return [a / b for a, b in pairs]


def best(repeats: Sequence[Repeat], names: Sequence[str]) -> str:
    """The contender with the highest median rate."""
    return max(names, key=lambda name: statistics.median(rates(repeats, name)))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """The median, and in brackets the lowest and the highest."""
    low, middle, high = (f"{v:.{digits}f}" for v in (min(values), _median(values), max(values)))
    return f"{middle} ({low} to {high})"


def noise(values: Sequence[float]) -> float:
    """Half the distance from the lowest to the highest, over the median."""
    return (max(values) - min(values)) / 2 / _median(values)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def cpu_seconds() -> dict[str, float]:
    """CPU time so far of this process and of those it started, summed by name."""
    me = psutil.Process()
    used = {"driver": sum(me.cpu_times()[:2])}
    for child in me.children(recursive=True):
        try:
            name, times = child.name() or "other", child.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended between the list and the look
        used[name] = used.get(name, 0.0) + sum(times[:2])
    return used


def quietness(repeats: Sequence[Repeat]) -> str:
    """What else the machine did, for the foot of a table."""
    busy = [repeat["busy_cores"] for repeat in repeats]
    stolen = [repeat["stolen_s"] for repeat in repeats]
    return (
        f"Cores busy with other work before a repeat: {spread(busy)}. CPU taken by the host during "
        f"a repeat: {spread(stolen)} s."
    )
