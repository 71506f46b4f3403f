"""How busy the actors of a run are at the moment, from the chunks that they reported last.

A chunk lasts about half a second. All numbers are of the newest chunk of each actor and computed
only when somebody reads them, so that they cost the same however fast the steps are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from actors.operations import Kind, Span
from orchestrator.trace import ActorSpan, block_of, concurrency, kin_of

STEPS = 20
"""So many steps before and after the last that all have reported are compared between blocks."""


class Reading(NamedTuple):
    """What the newest chunks say.

    Attributes:
        idle: share (0 to 1) of an actor's chunk in which it did not work, by actor.
        steps_apart: largest difference of steps between blocks at work at the same instant.
        in_flight: bytes that a block has sent and that are not taken, on average, by actor: bytes a
            second times the mean time between an activation's sending and its taking.
    """

    idle: dict[str, float]
    steps_apart: int
    in_flight: dict[str, float]


class _Chunk(NamedTuple):
    spans: Sequence[Span]
    sent: int  # bytes

    @property
    def wall(self) -> int:
        """Nanoseconds."""
        return max(0, self.spans[-1].ended - self.spans[0].started)


class Readings:
    """The newest chunk of each actor."""

    def __init__(self) -> None:
        self._chunks: dict[str, _Chunk] = {}

    def note(self, actor: str, spans: Sequence[Span], sent: int) -> None:
        """Take an actor's report in place of its last one.

        Args:
            sent: bytes.
        """
        if spans:
            self._chunks[actor] = _Chunk(spans, sent)

    def forget(self) -> None:
        """Drop all: actors came, went or were replaced."""
        self._chunks.clear()

    def read(self) -> Reading:
        """Compute the numbers."""
        return Reading(
            {actor: _idle(chunk) for actor, chunk in self._chunks.items()},
            _steps_apart(self._chunks),
            _in_flight(self._chunks),
        )


def _idle(chunk: _Chunk) -> float:
    work = sum(s.ended - s.started - s.waited - s.blocked for s in chunk.spans)
    return min(1.0, max(0.0, 1 - work / chunk.wall)) if chunk.wall else 0.0


def _steps_apart(chunks: Mapping[str, _Chunk]) -> int:
    last = min((chunk.spans[-1].step for chunk in chunks.values()), default=0)
    return concurrency(
        [
            ActorSpan(actor, *span)
            for actor, chunk in chunks.items()
            for span in chunk.spans
            if abs(span.step - last) < STEPS
        ]
    ).steps_apart


def _in_flight(chunks: Mapping[str, _Chunk]) -> dict[str, float]:
    places = {kin_of(actor): actor for actor in chunks if block_of(actor) is not None}
    found = {}
    for (lane, group, number), actor in places.items():
        follower = places.get((lane, group, number + 1))
        if follower is None:
            continue
        # A message leaves at the end of the operation, and is taken when its waiting is over.
        sent = {(s.step, s.shard): s.ended for s in _forwards(chunks[actor])}
        taken = {(s.step, s.shard): s.started + s.waited for s in _forwards(chunks[follower])}
        # Clocks of two machines may differ by more than a message waits.
        waits = [max(0, taken[key] - at) for key, at in sent.items() if key in taken]
        if waits and chunks[actor].wall:
            found[actor] = chunks[actor].sent / chunks[actor].wall * sum(waits) / len(waits)
    return found


def _forwards(chunk: _Chunk) -> list[Span]:
    return [span for span in chunk.spans if span.kind == Kind.FORWARD]
