"""What the newest chunks of the actors say, against numbers worked out by hand."""

from __future__ import annotations

from actors.operations import Span
from orchestrator.readings import Readings


def span(kind: str, step: int, started: int, ended: int, waited: int = 0, blocked: int = 0) -> Span:
    return Span(kind, step, 0, started, ended, waited, blocked)


def test_nothing_is_known_at_first() -> None:
    assert Readings().read() == ({}, 0, {})


def test_idle_is_what_an_actor_waits_in_its_own_chunk() -> None:
    readings = Readings()
    readings.note("block1", [span("F", 0, 0, 40, waited=10), span("U", 0, 60, 100, blocked=20)], 0)
    readings.note("block2", [span("F", 0, 1000, 1010)], 0)
    assert readings.read().idle == {"block1": 0.5, "block2": 0.0}


def test_bytes_in_flight_are_bytes_a_second_times_the_mean_wait() -> None:
    """Two messages of 300 bytes in 100 ns wait 10 and 30 ns: 20 ns at 6 bytes a nanosecond."""
    readings = Readings()
    readings.note("block1", [span("F", 0, 0, 20), span("F", 1, 50, 70), span("U", 1, 70, 100)], 600)
    # The first is taken after a wait that began before it was sent; the second lay there.
    readings.note("block2", [span("F", 0, 5, 60, waited=25), span("F", 1, 100, 130)], 10)
    assert readings.read().in_flight == {"block1": 6.0 * 20}


def test_a_message_that_is_awaited_is_not_in_flight() -> None:
    readings = Readings()
    readings.note("block1", [span("F", 0, 0, 20)], 600)
    readings.note("block2", [span("F", 0, 0, 60, waited=15)], 0)  # as clocks that differ may say
    assert readings.read().in_flight == {"block1": 0.0}


def test_steps_apart_are_those_at_the_same_instant() -> None:
    readings = Readings()
    readings.note("block1", [span("F", 4, 0, 10), span("F", 5, 10, 20)], 0)
    readings.note("block2", [span("F", 2, 5, 15), span("F", 3, 15, 20)], 0)
    assert readings.read().steps_apart == 3


def test_lanes_are_chains_of_their_own() -> None:
    readings = Readings()
    for lane, taken in (("", 30), (".lane2", 50)):
        readings.note(f"block1{lane}", [span("F", 0, 0, 20)], 20)
        readings.note(f"block2{lane}", [span("F", 0, taken, 60)], 0)
    assert readings.read().in_flight == {"block1": 10.0, "block1.lane2": 30.0}


def test_a_newer_chunk_takes_the_place_of_the_older() -> None:
    readings = Readings()
    readings.note("block1", [span("F", 0, 0, 10)], 0)
    readings.note("block1", [span("F", 1, 10, 20, waited=5)], 0)
    readings.note("block1", [], 0)  # nothing new
    assert readings.read().idle == {"block1": 0.5}
    readings.forget()
    assert readings.read().idle == {}
