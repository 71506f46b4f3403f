"""Random schedules of kills, drawn from seeds: whoever is killed when, the bits at the end stay."""

from __future__ import annotations

import functools
import random
from dataclasses import replace

import pytest

from actors.operations import Kind
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Local, Reconciliation
from learning.settings import AdamWSettings
from orchestrator.chain import Chain, Transport
from orchestrator.events import Event, SnapshotTaken
from orchestrator.lane import Actor
from orchestrator.recovery import RecoverySettings
from tests.orchestrator.engines import (
    CALENDAR,
    STEPS,
    Case,
    Told,
    differences,
    inline_engine,
    told,
)
from tests.orchestrator.incidents import ANY_STEP, Fault, Keeper, by_name
from tests.orchestrator.processes import Processes

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.timeout(280)]

CASES = {
    "backprop": Case(Backprop(order="1f1b"), shards=2),
    "local": Case(Local()),
    "reconcile": Case(Reconciliation()),
    "bll": Case(BLL(feedback=FeedbackSettings(delay="auto")), optimizer=AdamWSettings(lr=0.003)),
}
TRANSPORTS: tuple[Transport, ...] = ("object_store", "direct")
SCHEDULES = 50
USUAL = (2, 4)  # seeds; the others are long together
SNAPSHOTS = replace(CALENDAR, snapshots=frozenset({9, 24, 31, STEPS - 1}))


@functools.cache
def undisturbed(name: str) -> list[Told]:
    with inline_engine(CASES[name]) as engine:
        return told(engine.train(range(STEPS), SNAPSHOTS))


def faults_of(draw: random.Random, actors: dict[str, Actor]) -> list[Fault]:
    """Who is killed before which operation: one, or a second one while the first recovers."""
    victims = draw.sample(sorted(actors), draw.choice([1, 1, 2]))
    found: list[Fault] = []
    for number, victim in enumerate(victims):
        feedback = victim.startswith("feedback")
        kinds = [Kind.TABLE, Kind.FEEDBACK_UPDATE] if feedback else [Kind.FORWARD, Kind.UPDATE]
        kind = draw.choice([*kinds, Kind.SNAPSHOT])
        step = ANY_STEP if kind is Kind.SNAPSHOT else draw.randrange(STEPS)
        again = number > 0 and draw.random() < 0.5
        found.append(Fault("SIGKILL", victim, None if again else (kind, step)))
    return found


def planted_again(chain: Chain, draw: random.Random) -> None:
    """Once more, after the first recovery: another at another moment."""
    renew, rounds = chain.renew, iter([draw.random() < 0.3])

    def renewed(keep: bool = False) -> None:
        renew(keep)
        if next(rounds, False):
            actors = {actor.name: actor for actor in chain.actors}
            faults_of(draw, actors)[0].plant(actors)

    chain.renew = renewed  # type: ignore[method-assign]


def events_of(seed: int, processes: Processes) -> tuple[str, list[Event], Keeper]:
    """A rule, all that its run told, and what was kept on the way."""
    draw = random.Random(seed)
    names = sorted(CASES)
    name, transport = names[seed % len(names)], TRANSPORTS[seed // len(names) % 2]
    keeper, events = Keeper(), list[Event]()
    with processes.engine(CASES[name], 2, transport, recovery=RecoverySettings(hang=5.0)) as engine:
        actors, chain = by_name(engine), engine._chain
        for fault in faults_of(draw, actors):
            fault.plant(actors)
        planted_again(chain, draw)
        try:
            for event in engine.train(range(STEPS), SNAPSHOTS, keeper):
                keeper.keep(event)
                events.append(event)
        finally:
            del chain.renew  # the method again
    return name, events, keeper


@pytest.mark.parametrize(
    "seed",
    [s if s in USUAL else pytest.param(s, marks=pytest.mark.long) for s in range(SCHEDULES)],
)
def test_the_bits_are_those_of_a_run_without_kills(
    seed: int, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A step or so a chunk, so that snapshots have reached the driver when somebody is killed.
    monkeypatch.setattr("orchestrator.stream.CHUNK_SECONDS", 0.0)
    name, events, keeper = events_of(seed, processes)
    assert keeper.incidents and not any(incident.ended for incident in keeper.incidents)
    expected, found = undisturbed(name), told(events)
    # A snapshot that is taken again, after a loss, is told again, and is the same.
    seen: dict[int, SnapshotTaken] = {}
    once: list[Told] = []
    for event in found:
        if isinstance(event, SnapshotTaken):
            if event.step in seen:
                assert differences([event], [seen[event.step]]) == []
                continue
            seen[event.step] = event
        once.append(event)
    assert differences(sorted_by_step(once), sorted_by_step(expected)) == []


def sorted_by_step(events: list[Told]) -> list[Told]:
    """A snapshot may be told after a later step was, where it was lost on its way."""
    order = ["StepDone", "Evaluated", "SnapshotTaken"]
    return sorted(events, key=lambda e: (e.step, order.index(type(e).__name__)))
