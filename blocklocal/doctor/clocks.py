"""How far a node's clock is from this one: timelines put times of all nodes side by side."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from ray.exceptions import RayError

from blocklocal.doctor.check import Check
from blocklocal.doctor.nodes import Probe, reason

LIMIT_SECONDS = 0.1
ROUNDS = 5


class Sample(NamedTuple):
    """A question and its answer, in seconds of this clock, theirs and this one."""

    asked: float
    told: float
    heard: float


class Offset(NamedTuple):
    """Seconds that a clock is ahead of this one, give or take `within`."""

    seconds: float
    within: float


def offset(samples: Iterable[Sample]) -> Offset:
    """The offset by the quickest answer: it was told between the question and its arrival."""
    best = min(samples, key=lambda s: s.heard - s.asked)
    return Offset(best.told - (best.asked + best.heard) / 2, (best.heard - best.asked) / 2)


def check_clocks(probes: Sequence[Probe]) -> Iterator[Check]:
    """Compare each node's clock with this one."""
    for probe in probes:
        name = f"clock {probe.node.address}"
        try:
            found = offset([_sample(probe) for _ in range(ROUNDS)])
        except RayError as error:
            yield Check(name, False, reason(error), "see that node's line")
            continue
        yield judge(name, found)


def judge(name: str, found: Offset) -> Check:
    """A clock is wrong where it is off by more than the limit, whatever the answers took."""
    detail = f"{found.seconds * 1000:+.1f} ms, give or take {found.within * 1000:.1f} ms"
    ok = abs(found.seconds) - found.within <= LIMIT_SECONDS
    fix = f"keep it within {LIMIT_SECONDS * 1000:.0f} ms, with chrony or systemd-timesyncd"
    return Check(name, ok, detail, fix)


def _sample(probe: Probe) -> Sample:
    asked = time.time()
    told = probe.call(time.time)
    return Sample(asked, told, time.time())
