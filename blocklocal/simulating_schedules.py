"""The schedules that `blocklocal plan --simulate` compares."""

from __future__ import annotations

from dataclasses import dataclass

from learning.rules import BLL, Backprop, Interlocking, Local, Rule

STAGES = 2
"""Virtual stages a device, in the interleaved schedule."""


@dataclass(frozen=True)
class ScheduleChoice:
    """A rule in an order, with one block a device or several virtual stages."""

    name: str
    rule: Rule
    stages: int = 1


def schedules(given: Rule) -> list[ScheduleChoice]:
    """The schedules that are compared; the configured rule keeps its own settings."""
    like = {
        "local": (Local, {}),
        "pairwise": (Interlocking, {"reach": 2}),
        "3-wise": (Interlocking, {"reach": 3}),
        "bll": (BLL, {}),
        "backprop, gpipe": (Backprop, {"order": "gpipe"}),
        "backprop, 1f1b": (Backprop, {"order": "1f1b"}),
    }
    chosen = [
        ScheduleChoice(name, given.model_copy(update=more) if type(given) is kind else kind(**more))
        for name, (kind, more) in like.items()
    ]
    return [*chosen, ScheduleChoice(f"interleaved, v = {STAGES}", Backprop(), STAGES)]
