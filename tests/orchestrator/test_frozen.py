"""Many actors that do not answer cost no more time than one: all are waited for together."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import RayActorError

from actors.shell import Identity
from blocklocal.doctor import nodes
from orchestrator import calls, placement_groups, stream
from orchestrator.calls import ANSWER_SECONDS, endings
from orchestrator.lane import Actor, Lane
from orchestrator.losses import ActorLostError, NoRoomError
from orchestrator.queues import Call, Queue

MANY = 32


class FrozenRay:
    """Stands in for Ray and its clock; some calls never end, and a wait for them takes all it may.

    Attributes:
        now: seconds of its clock.
        silent: who does not answer; an actor that was killed answers that it is gone.
    """

    def __init__(self, silent: int) -> None:
        self.now = 0.0
        self.silent, self.killed = set(range(silent)), set[int]()

    def ends(self, call: int) -> bool:
        return call not in self.silent or call in self.killed

    def wait(
        self, refs: Sequence[int], num_returns: int = 1, timeout: float = 0.0, **_: Any
    ) -> tuple[list[int], list[int]]:
        done = [ref for ref in refs if self.ends(ref)]
        if len(done) < num_returns:
            self.now += timeout
        return done, [ref for ref in refs if ref not in done]

    def get(self, ref: int, timeout: float = 0.0) -> Identity:
        if ref in self.killed:
            raise RayActorError
        return Identity("node", ref)

    def kill(self, handle: Any) -> None:
        self.killed.add(handle.number)

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": "node", "Alive": True}]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def frozen(monkeypatch: pytest.MonkeyPatch, silent: int, *modules: Any) -> FrozenRay:
    ray = FrozenRay(silent)
    for module in modules:
        monkeypatch.setattr(module, "ray", ray, raising=False)
        monkeypatch.setattr(module, "time", ray, raising=False)
    return ray


def actors(known: bool = True) -> list[Actor]:
    made = []
    for number in range(MANY):
        identify = SimpleNamespace(remote=lambda number=number: number)
        handle = SimpleNamespace(number=number, identify=identify)
        made.append(Actor(f"block{number}", 1, None, number, 1.0, (), handle))
        made[-1].identity = Identity("node", number) if known else None
    return made


@pytest.mark.parametrize("silent", [0, 1, MANY])
def test_all_are_asked_at_once(silent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = frozen(monkeypatch, silent, calls)
    asked = actors()
    losses = endings(asked, "", 300.0)
    assert [loss.name for loss in losses] == [f"block{n}" for n in range(silent)]
    assert {loss.kind for loss in losses} <= {"hang"}
    assert all(loss.cause == "did not answer for 5 s" for loss in losses)
    assert [actor.handle is None for actor in asked] == [n < silent for n in range(MANY)]
    assert ray.now <= (ANSWER_SECONDS + 0.2 if silent else 0.0)


def test_who_is_ended_anyway_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = frozen(monkeypatch, MANY, calls)
    losses = endings(actors(), "did not end its operation", 300.0)
    assert len(losses) == MANY and {loss.cause for loss in losses} == {"did not end its operation"}
    assert ray.now == 0.0


def test_those_of_which_nothing_is_known_share_one_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ray = frozen(monkeypatch, 2, calls)
    with pytest.raises(ActorLostError, match="^block0 and block1 was out of reach for .* = 60 s$"):
        endings(actors(known=False), "", 60.0)
    assert 60.0 <= ray.now <= 60.0 + ANSWER_SECONDS + 0.1


def test_last_reports_are_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = frozen(monkeypatch, MANY - 1, stream, calls)
    waiting = stream.Stream.__new__(stream.Stream)
    waiting._chain = SimpleNamespace(stop=lambda: None)  # type: ignore[assignment]
    waiting._queues = [Queue(actor) for actor in actors()]
    for queue in waiting._queues:
        queue.calls.append(Call(queue.actor.handle.number, True))
    (told,) = waiting._last_reports()
    assert told[0] is waiting._queues[-1]
    assert ray.now == stream.STOPPING_SECONDS
    assert list(waiting._rest()) == []
    assert ray.now == stream.STOPPING_SECONDS + stream.LOOK_SECONDS


def test_room_for_all_is_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = frozen(monkeypatch, 0, placement_groups)
    nowhere = placement_groups.Placement.__new__(placement_groups.Placement)
    nowhere._pinned = set()
    monkeypatch.setattr(nowhere, "is_there", lambda block: block < 3 and clock.now > 20)
    missing = actors()
    for actor in missing:
        actor.handle = None
    with pytest.raises(NoRoomError, match="no room for block3 again within .* = 60 s"):
        Lane(1, missing, nowhere).wait_for_room(60.0, deadline=60.0)
    assert 60.0 <= clock.now < 61.0


def test_groups_are_made_within_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = frozen(monkeypatch, 0, placement_groups)

    class Slow:
        def wait(self, seconds: float) -> bool:
            clock.now += min(seconds, 25.0)
            return seconds >= 25.0

    slow = placement_groups.Placement.__new__(placement_groups.Placement)
    slow._groups = {number: Slow() for number in range(1, MANY)}  # type: ignore[assignment]
    with pytest.raises(Exception, match="no room to block 3 within 60 s"):
        slow._wait_created()
    assert clock.now == placement_groups.CREATION_SECONDS


def test_the_doctor_waits_for_all_nodes_together(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = frozen(monkeypatch, MANY, nodes)
    nodes.wait_for(range(MANY))  # type: ignore[arg-type]
    assert ray.now == nodes.SECONDS
