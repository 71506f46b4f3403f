"""Cases and helpers for tests of chains that change while they run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from learning.learners.feedback import FeedbackSettings
from learning.networks import MLPSettings
from learning.rules import BLL, Backprop, Local
from orchestrator.elasticity import Elasticity
from orchestrator.engine import RayEngine
from orchestrator.events import Changed, Event, StepDone
from orchestrator.lane_settings import LaneSettings
from tests.orchestrator.engines import (
    CALENDAR,
    STEPS,
    Case,
    Told,
    differences,
    eventually,
    inline_engine,
    told,
)
from tests.orchestrator.incidents import Keeper

CPU = 0.4  # a block: three lanes of three blocks fit
NORMED = MLPSettings(widths=(12, 8, 10), normalization="batch", dropout=0.2)
CASES = {
    "local": Case(Local(), shards=4, cpus=CPU),
    "batch norm": Case(Local(), NORMED, shards=4, cpus=CPU),
    "1f1b": Case(Backprop(order="1f1b"), shards=4, cpus=CPU),
    "bll": Case(BLL(feedback=FeedbackSettings(delay="auto")), shards=4, cpus=CPU),
}


def alone(case: Case) -> list[Told]:
    with inline_engine(case) as engine:
        return told(engine.train(range(STEPS), CALENDAR))


def follow(
    engine: RayEngine, at: dict[int, Callable[[], None]], keeper: Keeper | None = None
) -> list[Event]:
    """All events of a run in which something is done when these steps are first told."""
    keeper, at, events = keeper or Keeper(), dict(at), list[Event]()
    for event in engine.train(range(STEPS), CALENDAR, keeper):
        keeper.keep(event)
        events.append(event)
        if isinstance(event, StepDone) and event.step in at:
            at.pop(event.step)()
    return events


def unlike(events: list[Event], case: Case) -> list[str]:
    """Where a run differs from that of one process."""
    return differences(told(events), alone(case))


def changes(events: list[Event]) -> list[Changed]:
    return [event for event in events if isinstance(event, Changed)]


def wait_for_growth(elasticity: Elasticity, lanes: int) -> None:
    """Let there be so many lanes, and wait until the one that is missing can join.

    It is not let before: on a fast processor it would have joined already.
    """
    elasticity.settings = LaneSettings(min=1, max=lanes)

    def ready() -> bool:
        elasticity.look()
        return elasticity._growth is not None and elasticity._growth.is_ready()

    assert eventually(ready)


def ask_to_move(engine: RayEngine, blocks: Sequence[int]) -> None:
    """Have blocks of the first lane move, as soon as the run goes on."""
    elasticity = engine._elasticity
    elasticity.ask_to_move(engine._chain.lanes[0], list(blocks), "because of a test")
    there = elasticity._move
    assert there is not None and eventually(there.arrival.is_ready)
