"""Feeding the actors of a chain: chunks of operations go out, reports come back by step.

Every actor gets the same range of steps, and two chunks are queued at each so that none runs dry.
What changes in the chain does so between two chunks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import ray
import torch
from torch import Tensor

from actors import wire
from actors.operations import Report, Span
from orchestrator.calls import result
from orchestrator.chain import Chain
from orchestrator.elasticity import Elasticity
from orchestrator.events import Changed, Evaluated, Event, SnapshotTaken, StepDone, Worked
from orchestrator.hangs import HangWatch
from orchestrator.lane import Actor
from orchestrator.losses import ActorLostError, Loss
from orchestrator.program import Calendar
from orchestrator.queues import Queue, hand_out
from orchestrator.stopping import Stopping
from orchestrator.turns import Turn, keep

CHUNK_SECONDS = 0.5  # a chunk lasts about this long: reports stay fresh, calls stay rare
ACTORS = 8  # with more, chunks last longer, so that the driver has no more reports a second
LONGEST = 8  # at most so much longer
CHUNKS_QUEUED = 2
LOOK_SECONDS = 0.25  # at most so long between looks at what has ended
HOST = torch.device("cpu")
STOPPING_SECONDS = 30.0  # for the operation that an actor is in when the run ends


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
        watch: notices when nobody reports.
    """

    def __init__(
        self,
        chain: Chain,
        calendar: Calendar,
        steps: range,
        hang: float,
        elasticity: Elasticity,
        opening: Turn | None = None,
        stopping: Stopping | None = None,
    ) -> None:
        """Nothing is handed out before `events` is iterated.

        Args:
            hang: least seconds without any report after which actors are asked what they do.
            elasticity: says what changes in the chain, and when.
            opening: what actors do before their first operation.
            stopping: ends the stream early when somebody asks for it.
        """
        self._chain, self._calendar, self._steps = chain, calendar, steps
        self._elasticity, self._opening = elasticity, opening
        self._stopping = stopping or Stopping()
        self._every = chain.program.settings.agree_every
        assert not any((step + 1) % self._every for step in calendar.snapshots), "lanes differ"
        self._queues = [Queue(actor) for actor in chain.actors]
        self._learners = sum(actor.learns for actor in chain.lanes[0].actors)
        self._turned = steps.start - 1  # the step of the last turn
        self._collected = _Collected()
        self.watch = HangWatch(chain, hang)
        self.last: dict[str, Span] = {}
        self._snapshot_at = time.monotonic()

    def events(self) -> Iterator[Event]:
        """Run all steps; yields events, steps in order.

        Raises:
            ActorLostError: when an actor is lost; `halt` then ends the others' work.
        """
        steps, collected = self._steps, self._collected
        finished = handed = steps.start
        stop, ends = steps.stop, False
        length, error = 1, None
        while finished < stop:
            if self._stopping.asked and not ends:
                handed = stop = self._last(finished, handed)
                ends = True
            while handed < stop and self._room():
                chunk = range(handed, self._end(handed, length))
                opening, self._opening = self._opening, None
                turn = None if opening else self._turn(finished, chunk.start)
                self._snapshot_when_due(chunk.stop - 1)
                hand_out(self._queues, self._chain, self._calendar, chunk, opening or turn)
                if turn is not None:
                    names = frozenset(actor.name for actor in self._chain.actors)
                    yield Changed(chunk.start, turn.sentence, len(self._chain.lanes), names)
                handed = chunk.stop
            for queue, leads, report in self._reports():
                yield self._collect(queue.actor, leads, report)
                seconds = CHUNK_SECONDS * min(LONGEST, max(1, len(self._queues) / ACTORS))
                length = length if queue.leaves else _chunk_length(report.spans, seconds)
                error = error or report.error
            if error is not None:
                for queue, leads, report in self._last_reports():
                    yield self._collect(queue.actor, leads, report)
            self._drop_who_left()
            while self._is_complete(finished):
                if error is not None and finished >= min(collected.done.values()):
                    break  # the last step of a chunk that was cut short may lack its evaluation
                yield from self._complete(finished)
                finished += 1
            if error is not None:
                raise error
        yield from self._rest()

    def _last(self, finished: int, handed: int) -> int:
        """Hand out no more than it takes to keep all that is finished.

        Args:
            finished: the step after the last that was told.
            handed: the step after the last that was handed out.

        Returns:
            The step after the last that will be done: a snapshot follows it.
        """
        if handed == self._steps.start:
            return handed  # what there is was kept before
        least = max(handed, finished + 1)
        stop = min(least + -least % self._every, self._steps.stop)  # lanes are the same there
        known = self._calendar.snapshots
        self._calendar = replace(self._calendar, snapshots=known | {stop - 1})
        if stop > handed or stop - 1 not in known:
            turn = None if stop > handed else keep(self._chain, stop)
            hand_out(self._queues, self._chain, self._calendar, range(handed, stop), turn)
        return stop

    def _rest(self) -> Iterator[Event]:
        """What those did who do not lead, as far as they are done."""
        done = self._done_within(LOOK_SECONDS)
        for queue in self._queues:
            while queue.calls and queue.calls[0].ref in done:
                call = queue.calls.popleft()
                try:
                    report = result(queue.actor, call.ref)
                except ActorLostError:
                    break  # all steps are done, and nothing was lacking
                yield self._collect(queue.actor, call.leads, report)

    def _end(self, start: int, length: int) -> int:
        """Where a chunk ends: where all lanes are the same, if it comes so far."""
        stop = min(start + length, self._steps.stop)
        same = stop - stop % self._every
        return same if same > start else stop

    def _turn(self, finished: int, step: int) -> Turn | None:
        """What changes in the chain before `step`: not before what changed last is over.

        Nor where lanes differ.
        """
        if finished <= self._turned or step % self._every or any(q.leaves for q in self._queues):
            return None
        turn = self._elasticity.turn(step)
        if turn is not None:
            self._turned = step
            for queue in self._queues:
                queue.leaves = queue.actor in turn.leaving
            known = {queue.actor for queue in self._queues}
            self._queues += [Queue(a) for a in self._chain.actors if a not in known]
        return turn

    def _drop_who_left(self) -> None:
        """End those who have done their last operation."""
        gone = [queue for queue in self._queues if queue.leaves]
        if gone and not any(queue.calls for queue in gone):
            self._queues = [queue for queue in self._queues if not queue.leaves]
            self._chain.clear_spare()

    def _snapshot_when_due(self, step: int) -> None:
        """Put a snapshot after `step`, not handed out yet, if the last was long ago.

        Or if the end of a node is near: it may come before those on it have moved. Where lanes
        differ after `step`, it waits.
        """
        calendar, now = self._calendar, time.monotonic()
        seconds = calendar.snapshot_seconds
        due = seconds is not None and now - self._snapshot_at >= seconds
        self._elasticity.look()
        if (step + 1) % self._every:
            return
        if self._elasticity.alarmed() or due:
            self._snapshot_at = now
            self._calendar = replace(calendar, snapshots=calendar.snapshots | {step})

    def _room(self) -> bool:
        return all(len(q.calls) < CHUNKS_QUEUED for q in self._queues if not q.leaves)

    def _reports(self) -> Iterator[tuple[Queue, bool, Report]]:
        """All reports that have come, after a short wait for those of all actors.

        To wake up for each of them would cost the driver more with every block.
        """
        pending = {queue.calls[0].ref: queue for queue in self._queues if queue.calls}
        calls, began = list(pending), time.monotonic()
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=LOOK_SECONDS)
        self.watch.waited(time.monotonic() - began, bool(ready))
        for call in ready:
            queue = pending[call]
            _, leads = queue.calls.popleft()
            yield queue, leads, result(queue.actor, call)

    def _last_reports(self) -> Iterator[tuple[Queue, bool, Report]]:
        """Stop all actors and take what their chunks have done: it is finished work."""
        self._chain.stop()
        done = self._done_within(STOPPING_SECONDS)
        for queue in self._queues:
            # Who hangs in one operation does not matter: the error at hand is what ends the run.
            while queue.calls and queue.calls[0].ref in done:
                call = queue.calls.popleft()
                yield queue, call.leads, result(queue.actor, call.ref)

    def _done_within(self, seconds: float) -> set[ray.ObjectRef[Report]]:
        """The calls that have ended, after a wait of so long for all of them."""
        calls = [call.ref for queue in self._queues for call in queue.calls]
        return set(ray.wait(calls, num_returns=len(calls), timeout=seconds)[0]) if calls else set()

    def halt(self) -> list[Loss]:
        """Stop the actors that are there and drop what they were at.

        Returns:
            The losses of those that did not end their operation in time, and were ended.
        """
        self._chain.abandon()
        self._chain.clear_spare()
        under_way = {call.ref: queue.actor for queue in self._queues for call in queue.calls}
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
        return self._chain.end(stuck.values(), why)

    def _collect(self, actor: Actor, leads: bool, report: Report) -> Worked:
        collected, name = self._collected, actor.learner
        if report.spans:
            self.last[actor.name] = report.spans[-1]
        self._elasticity.note(actor, report.spans)
        worked = Worked(actor.name, report.spans, report.bytes_sent)
        if not leads:
            return worked
        for step, metrics in report.steps.items():
            collected.metrics.setdefault(step, {})[name] = metrics
            collected.done[name] = max(step, collected.done.get(name, step))
        for step, split, metrics in report.evaluations:
            if metrics:
                collected.evaluations.setdefault((step, split), {})[name] = metrics
        for step, state in report.snapshots.items():
            collected.snapshots.setdefault(step, {})[name] = wire.decode(state, HOST)
        return worked

    def _is_complete(self, step: int) -> bool:
        """Whether all have reported the step, and its snapshot where there is one."""
        told, kept = self._collected.metrics, self._collected.snapshots
        if len(told.get(step, ())) < self._learners:
            return False
        return step not in self._calendar.snapshots or len(kept.get(step, ())) == self._learners

    def _complete(self, step: int) -> Iterator[Event]:
        collected = self._collected
        metrics = collected.metrics.pop(step)
        yield StepDone(step, {name: metrics[name] for name in sorted(metrics)})
        for split in self._calendar.evaluations.get(step, ()):
            yield Evaluated(step, split, collected.evaluations.pop((step, split)))
        if step in self._calendar.snapshots:
            yield SnapshotTaken(step, collected.snapshots.pop(step))


def _chunk_length(spans: Sequence[Span], seconds: float) -> int:
    """How many steps the next chunk has, to last so long: from how long those of the last took."""
    if not spans:
        return 1
    steps = len({span.step for span in spans})
    took = (spans[-1].ended - spans[0].started) / 1e9
    return max(1, min(100, round(seconds * steps / max(took, 1e-6))))
