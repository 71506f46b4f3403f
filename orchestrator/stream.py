"""Feeding the actors of a chain: chunks of operations go out, reports come back by step.

Every actor gets the same range of steps, and two chunks are queued at each so that none runs dry.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import ray
from torch import Tensor

from actors.operations import Operation, Report, Span
from orchestrator.chain import Actor, Chain
from orchestrator.dependencies import SOURCE
from orchestrator.events import Evaluated, Event, SnapshotTaken, StepDone, Worked
from orchestrator.losses import ActorLostError, Loss
from orchestrator.program import (
    Calendar,
    block_program,
    feedback_program,
    source_program,
    with_batches,
)

CHUNK_SECONDS = 0.5  # a chunk lasts about this long: reports stay fresh, calls stay rare
CHUNKS_QUEUED = 2
LOOK_SECONDS = 0.25  # at most so long between looks at what has ended
STOPPING_SECONDS = 30.0  # for the operation that an actor is in when the run ends
FIRST_SECONDS = 300.0  # for the first report: compilers run, memory is touched


@dataclass
class _Queue:
    """One actor, and the chunks that were handed to it."""

    actor: Actor
    operations: Callable[[range], list[Operation]]
    calls: deque[ray.ObjectRef[Report]] = field(default_factory=deque)

    def hand(self, steps: range) -> None:
        """Hand it its part of these steps."""
        self.calls.append(self.actor.handle.run.remote(self.operations(steps)))


@dataclass
class _Collected:
    """Reports of all actors, until a step is complete."""

    metrics: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    evaluations: dict[tuple[int, str], dict[str, dict[str, float]]] = field(default_factory=dict)
    snapshots: dict[int, dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)


class Stream:
    """A range of steps on its way through a chain.

    Attributes:
        last: the last operation that each actor reported, by name.
        silence: seconds spent waiting since an actor reported last.
    """

    def __init__(self, chain: Chain, calendar: Calendar, steps: range, hang: float) -> None:
        """Nothing is handed out before `events` is iterated.

        Args:
            hang: least seconds without any report after which actors are asked what they do.
        """
        self._chain, self._calendar, self._steps = chain, calendar, steps
        self._queues = [_Queue(actor, self._operations(actor)) for actor in chain.actors]
        self._learners = [actor.name for actor in chain.actors if actor.name != SOURCE]
        self._collected = _Collected()
        self._hang, self._longest = hang, 0.0
        self.last: dict[str, Span] = {}
        self._snapshot_at = time.monotonic()
        self.silence = self._asked = 0.0
        self._waiting: dict[str, Operation | None] = {}

    def _operations(self, actor: Actor) -> Callable[[range], list[Operation]]:
        """How an actor's program for a range of steps is made."""
        program, k = self._chain.program, actor.block
        if actor.name == SOURCE:
            return lambda chunk: source_program(program, self._calendar, chunk)
        if actor.name.startswith("feedback"):
            return lambda chunk: feedback_program(program, self._calendar, chunk)
        if k > 1 or self._chain.actors[0].name == SOURCE:
            return lambda chunk: block_program(program, k, self._calendar, chunk)
        return lambda chunk: with_batches(block_program(program, k, self._calendar, chunk))

    def events(self) -> Iterator[Event]:
        """Run all steps; yields events, steps in order.

        Raises:
            ActorLostError: when an actor is lost; `halt` then ends the others' work.
        """
        steps, collected = self._steps, self._collected
        finished = handed = steps.start
        length, error = 1, None
        while finished < steps.stop:
            while handed < steps.stop and self._room():
                chunk = range(handed, min(handed + length, steps.stop))
                self._snapshot_when_due(chunk.stop - 1)
                for queue in self._queues:
                    queue.hand(chunk)
                handed = chunk.stop
            for queue, report in self._reports():
                yield self._collect(queue.actor.name, report)
                length = _chunk_length(report.spans)
                error = error or report.error
            if error is not None:
                for queue, report in self._last_reports():
                    yield self._collect(queue.actor.name, report)
            ready = min(collected.done.get(name, steps.start - 1) for name in self._learners)
            if error is not None:
                ready -= 1  # the last step of a chunk that was cut short may lack its evaluation
            while finished <= ready:
                yield from self._complete(finished)
                finished += 1
            if error is not None:
                raise error

    def _snapshot_when_due(self, step: int) -> None:
        """Put a snapshot after `step`, not handed out yet, if the last was long ago."""
        calendar, now = self._calendar, time.monotonic()
        seconds = calendar.snapshot_seconds
        if seconds is not None and now - self._snapshot_at >= seconds:
            self._snapshot_at = now
            self._calendar = replace(calendar, snapshots=calendar.snapshots | {step})

    def _room(self) -> bool:
        return all(len(queue.calls) < CHUNKS_QUEUED for queue in self._queues)

    def _reports(self) -> Iterator[tuple[_Queue, Report]]:
        """All reports that have come, after a short wait for those of all actors.

        To wake up for each of them would cost the driver more with every block.
        """
        pending = {queue.calls[0]: queue for queue in self._queues if queue.calls}
        calls, began = list(pending), time.monotonic()
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=LOOK_SECONDS)
        self.silence += time.monotonic() - began
        if ready:
            self._longest = max(self._longest, self.silence)
            self.silence = self._asked = 0.0
        elif self.silence - self._asked > max(self._hang, 3 * self._longest):
            self._asked = self.silence
            self._look_for_hangs()
        for call in ready:
            queue = pending[call]
            queue.calls.popleft()
            yield queue, self._chain.result(queue.actor, call)

    def _look_for_hangs(self) -> None:
        """Ask all actors what they do; go on if one is at work and within its time.

        That all wait counts only if they wait for the same as when they were asked before.
        """
        told = self._chain.doing()
        for name, doing in told.items():
            if doing is None:
                raise ActorLostError(f"{name} does not answer")
            limit = FIRST_SECONDS if doing.longest is None else 10 * doing.longest
            if not doing.waiting and doing.seconds > max(self._hang, limit):
                long = f"{doing.seconds:.0f} s"
                raise ActorLostError(f"{name} has been at {doing.operation} for {long}")
        at = {name: doing.operation for name, doing in told.items() if doing and doing.waiting}
        # Who is at no operation has ended its chunk: the report is on its way.
        if len(at) == len(told) and None not in at.values() and at == self._waiting:
            raise ActorLostError("all actors wait for messages, and none is under way")
        self._waiting = at

    def _last_reports(self) -> Iterator[tuple[_Queue, Report]]:
        """Stop all actors and take what their chunks have done: it is finished work."""
        self._chain.stop()
        for queue in self._queues:
            while queue.calls:
                call = queue.calls.popleft()
                done, _ = ray.wait([call], timeout=STOPPING_SECONDS)
                if not done:
                    queue.calls.appendleft(call)
                    break  # it hangs in one operation; the error at hand is what ends the run
                yield queue, self._chain.result(queue.actor, call)

    def halt(self) -> list[Loss]:
        """Stop the actors that are there and drop what they were at.

        Returns:
            The losses of those that did not end their operation in time, and were ended.
        """
        self._chain.abandon()
        under_way = {call: queue.actor for queue in self._queues for call in queue.calls}
        under_way |= self._chain.unfinished
        for queue in self._queues:
            queue.calls.clear()
        calls = [call for call, actor in under_way.items() if actor.handle is not None]
        if not calls:
            return []
        # What they report is not wanted: a snapshot may be long under way.
        _, still = ray.wait(
            calls, num_returns=len(calls), timeout=STOPPING_SECONDS, fetch_local=False
        )
        stuck = {under_way[call].name: under_way[call] for call in still}
        why = f"did not end its operation in {STOPPING_SECONDS:g} s"
        return [self._chain.end(actor, why) for actor in stuck.values()]

    def _collect(self, name: str, report: Report) -> Worked:
        collected = self._collected
        if report.spans:
            self.last[name] = report.spans[-1]
        for step, metrics in report.steps.items():
            collected.metrics.setdefault(step, {})[name] = metrics
            collected.done[name] = step
        for step, split, metrics in report.evaluations:
            if metrics:
                collected.evaluations.setdefault((step, split), {})[name] = metrics
        for step, state in report.snapshots.items():
            collected.snapshots.setdefault(step, {})[name] = state
        return Worked(name, report.spans, report.bytes_sent)

    def _complete(self, step: int) -> Iterator[Event]:
        collected = self._collected
        metrics = collected.metrics.pop(step)
        yield StepDone(step, {name: metrics[name] for name in sorted(metrics)})
        for split in self._calendar.evaluations.get(step, ()):
            yield Evaluated(step, split, collected.evaluations.pop((step, split)))
        if step in self._calendar.snapshots:
            yield SnapshotTaken(step, collected.snapshots.pop(step))


def _chunk_length(spans: Sequence[Span]) -> int:
    """How many steps the next chunk has, from how long those of the last one took."""
    if not spans:
        return 1
    steps = len({span.step for span in spans})
    seconds = (spans[-1].ended - spans[0].started) / 1e9
    return max(1, min(100, round(CHUNK_SECONDS * steps / max(seconds, 1e-6))))
