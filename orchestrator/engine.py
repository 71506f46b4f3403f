"""The Ray engine: starts the actors of a program and feeds them their operations in chunks.

The driver is not in the data path. It hands every actor the same range of steps, keeps two chunks
queued at each so that none runs dry, and puts the reports together again by step.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from torch import Tensor

from actors.direct import PeerLostError
from actors.operations import Operation, Report, Span
from actors.shells import BatchSettings, actor_classes
from learning.build import Program
from learning.data import AugmentSettings, Dataset, DataSettings
from learning.errors import UserError
from learning.messages import block_name, feedback_name
from learning.units import Unit
from orchestrator.dependencies import SOURCE
from orchestrator.events import Evaluated, Event, SnapshotTaken, StepDone, Worked
from orchestrator.placement import Placement
from orchestrator.plan import Plan
from orchestrator.program import (
    Calendar,
    block_program,
    channels,
    feedback_program,
    source_program,
    with_batches,
)

Transport = Literal["object_store", "direct"]
SourcePlace = Literal["block1", "actor"]
"""Who makes the batches: block 1, or an actor of its own."""

CHUNK_SECONDS = 0.5  # a chunk lasts about this long: reports stay fresh, calls stay rare
CHUNKS_QUEUED = 2
STOPPING_SECONDS = 30.0  # for the operation that an actor is in when the run ends


class ActorLostError(RuntimeError):
    """An actor died; the run cannot go on, its last checkpoint can."""


@dataclass
class _Queue:
    """One actor, and the chunks that were handed to it."""

    name: str
    handle: Any
    operations: Callable[[range], list[Operation]]
    calls: deque[ray.ObjectRef[Report]] = field(default_factory=deque)


@dataclass
class _Collected:
    """Reports of all actors, until a step is complete."""

    metrics: dict[int, dict[str, dict[str, float]]] = field(default_factory=dict)
    evaluations: dict[tuple[int, str], dict[str, dict[str, float]]] = field(default_factory=dict)
    snapshots: dict[int, dict[str, dict[str, Tensor]]] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)


class RayEngine:
    """Blocks, feedback modules and perhaps the source as actors in placement groups."""

    def __init__(
        self,
        program: Program,
        plan: Plan,
        blocks: Sequence[Sequence[Unit]],
        data: DataSettings | Dataset,
        augment: AugmentSettings,
        *,
        evaluation_batch: int,
        threads: int,
        window: int,
        transport: Transport = "object_store",
        source: SourcePlace = "block1",
    ) -> None:
        """Start all actors and connect them.

        Args:
            data: settings of data that are loaded where batches are made, or data in memory.
            threads: torch threads of each actor.
            window: steps that a block may run ahead of the next one.
            transport: how messages travel between actors.
            source: who makes the batches.

        Raises:
            UserError: when the plan does not fit the cluster, or an actor cannot reach another.
        """
        self._placement = Placement(plan)
        self._actors: list[_Queue] = []
        self._names: dict[str, str] = {}
        feedback_modules = program.feedback_modules
        messages = window * program.settings.shards
        # A thread for each message that may be held back; sockets hold none back.
        classes = actor_classes(messages if transport == "object_store" else 0)
        # A bundle holds a block, and in half of it its feedback module where there is one.
        share = 0.5 if feedback_modules else 1.0

        def start(actor: Any, name: str, block: int, share: float, *arguments: Any) -> _Queue:
            options = self._placement.options(block, share=share)
            # Ray must never re-run a training step on a reset actor.
            handle = actor.options(max_restarts=0, max_task_retries=0, **options).remote(*arguments)
            queue = _Queue(name, handle, lambda steps: [])
            self._actors.append(queue)
            return queue

        self._program = program
        try:
            batches = BatchSettings(data, augment, evaluation_batch)
            self._source = None
            if source == "actor":
                self._source = start(classes.source, SOURCE, 1, 0.0, program, batches, 1)
            later = [blocks[k:] if program.rule.looks_ahead else () for k in range(len(blocks) + 1)]
            self._blocks = [
                start(
                    classes.block,
                    block_name(k),
                    k,
                    share,
                    program,
                    k,
                    units,
                    later[k],
                    threads,
                    batches if k == 1 and source == "block1" else None,
                )
                for k, units in enumerate(blocks, start=1)
            ]
            self._feedback = [
                start(classes.feedback, feedback_name(k), k, share, program, k, threads)
                for k in range(1, feedback_modules + 1)
            ]
            self._connect(messages, transport)
        except BaseException:
            self.close()
            raise

    def _connect(self, messages: int, transport: Transport) -> None:
        """Wire the streams: activations forward, gradients and tables back, readouts across."""
        all_of_them = self._actors
        known = self._call(all_of_them, [a.handle.identify.remote() for a in all_of_them])
        self._names = {i: a.name for (i, _), a in zip(known, all_of_them, strict=True)}
        peers = {actor.name: actor.handle for actor in all_of_them}
        if transport == "direct":
            secret, between_nodes = secrets.token_bytes(32), len({node for _, node in known}) > 1
            listening = [a.handle.listen.remote(a.name, secret, between_nodes) for a in all_of_them]
            peers = {e.name: e for e in self._call(all_of_them, listening)}
        calls = []
        for actor in all_of_them:
            windows = channels(self._program, actor.name, messages)
            connected = {name: (peers[name], window) for name, window in windows.items()}
            calls.append(actor.handle.connect.remote(connected))
        try:
            self._call(all_of_them, calls)
        except UserError:
            # Not the network's fault if one of them has died meanwhile: that is said first.
            self._call(all_of_them, [a.handle.identify.remote() for a in all_of_them])
            raise

    def load(self, state: dict[str, dict[str, Tensor]], step: int) -> None:
        actors = [*self._blocks, *self._feedback]
        # All mailboxes first: a learner that is loaded sends what was under way.
        self._call(actors, [a.handle.clear.remote() for a in actors])
        self._call(actors, [a.handle.load.remote(state[a.name], step) for a in actors])

    def train(self, steps: range, calendar: Calendar) -> Iterator[Event]:
        program = self._program
        for k, block in enumerate(self._blocks, start=1):
            block.operations = lambda chunk, k=k: block_program(program, k, calendar, chunk)
        if self._source is not None:
            self._source.operations = lambda chunk: source_program(program, calendar, chunk)
        else:
            self._blocks[0].operations = lambda chunk: with_batches(
                block_program(program, 1, calendar, chunk)
            )
        for module in self._feedback:
            module.operations = lambda chunk: feedback_program(program, calendar, chunk)
        collected, finished, handed = _Collected(), steps.start, steps.start
        length, error = 1, None
        while finished < steps.stop:
            while handed < steps.stop and self._room():
                chunk = range(handed, min(handed + length, steps.stop))
                for actor in self._actors:
                    actor.calls.append(actor.handle.run.remote(actor.operations(chunk)))
                handed = chunk.stop
            for actor, report in self._reports():
                yield Worked(actor.name, report.spans, report.bytes_sent)
                _collect(collected, actor.name, report)
                length = _chunk_length(report.spans)
                error = error or report.error
            if error is not None:
                for actor, report in self._last_reports():
                    yield Worked(actor.name, report.spans, report.bytes_sent)
                    _collect(collected, actor.name, report)
            learners = [a.name for a in (*self._blocks, *self._feedback)]
            ready = min(collected.done.get(name, steps.start - 1) for name in learners)
            if error is not None:
                ready -= 1  # the last step of a chunk that was cut short may lack its evaluation
            while finished <= ready:
                yield from _complete(collected, finished, calendar)
                finished += 1
            if error is not None:
                raise error

    def _room(self) -> bool:
        return all(len(actor.calls) < CHUNKS_QUEUED for actor in self._actors)

    def _reports(self) -> Iterator[tuple[_Queue, Report]]:
        """Wait for at least one chunk to finish anywhere, and take all that have."""
        pending = {actor.calls[0]: actor for actor in self._actors if actor.calls}
        ready, _ = ray.wait(list(pending), num_returns=1)
        more, _ = ray.wait(list(pending), num_returns=len(pending), timeout=0)
        for call in dict.fromkeys([*ready, *more]):
            actor = pending[call]
            actor.calls.popleft()
            yield actor, self._result(actor.name, call)

    def _last_reports(self) -> Iterator[tuple[_Queue, Report]]:
        """Stop all actors and take what their chunks have done: it is finished work."""
        for actor in self._actors:
            actor.handle.stop.options(num_returns=0).remote()
        for actor in self._actors:
            while actor.calls:
                call = actor.calls.popleft()
                done, _ = ray.wait([call], timeout=STOPPING_SECONDS)
                if not done:
                    break  # it hangs in one operation; the error at hand is what ends the run
                yield actor, self._result(actor.name, call)

    def _result(self, name: str, call: ray.ObjectRef[Any]) -> Any:
        try:
            return ray.get(call)
        except RayError as error:
            raise self._root_cause(name, error) from error

    def _root_cause(self, name: str, error: Exception) -> Exception:
        """The error to show: what the user caused, before the loss of a peer that followed."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, PeerLostError):
            return self._why_lost(cause)
        if isinstance(cause, RayTaskError) or not isinstance(cause, RayError):
            return error
        if cause is not error:  # `name` is alive and was sending to the one that is not
            known = getattr(cause, "actor_id", "")  # an end for lack of memory names nobody
            name = self._names.get(known, f"a neighbour of {name}")
        how = "could not start" if getattr(cause, "actor_init_failed", False) else "was lost"
        return ActorLostError(f"{name} {how}: {cause}")

    def _why_lost(self, loss: PeerLostError) -> Exception:
        """A neighbour noticed first; Ray knows more as soon as the lost actor's call fails."""
        lost = next(actor for actor in self._actors if actor.name == loss.peer)
        try:
            ray.get(list(lost.calls), timeout=STOPPING_SECONDS)
        except GetTimeoutError:
            pass  # it lives: only the connection ended
        except RayError as error:
            if not isinstance(getattr(error, "cause", None), PeerLostError):
                return self._root_cause(lost.name, error)
        return ActorLostError(f"{lost.name} was lost: its connection ended")

    def _call(self, actors: Sequence[_Queue], calls: Sequence[ray.ObjectRef[Any]]) -> list[Any]:
        return [self._result(a.name, c) for a, c in zip(actors, calls, strict=True)]

    def close(self) -> None:
        """End the actors and give their resources back."""
        for actor in self._actors:
            ray.kill(actor.handle)
        self._placement.remove()


def _chunk_length(spans: Sequence[Span]) -> int:
    """How many steps the next chunk has, from how long those of the last one took."""
    if not spans:
        return 1
    steps = len({span.step for span in spans})
    seconds = (spans[-1].ended - spans[0].started) / 1e9
    return max(1, min(100, round(CHUNK_SECONDS * steps / max(seconds, 1e-6))))


def _collect(collected: _Collected, name: str, report: Report) -> None:
    for step, metrics in report.steps.items():
        collected.metrics.setdefault(step, {})[name] = metrics
        collected.done[name] = step
    for step, split, metrics in report.evaluations:
        if metrics:
            collected.evaluations.setdefault((step, split), {})[name] = metrics
    for step, state in report.snapshots.items():
        collected.snapshots.setdefault(step, {})[name] = state


def _complete(collected: _Collected, step: int, calendar: Calendar) -> Iterator[Event]:
    metrics = collected.metrics.pop(step)
    yield StepDone(step, {name: metrics[name] for name in sorted(metrics)})
    for split in calendar.evaluations.get(step, ()):
        yield Evaluated(step, split, collected.evaluations.pop((step, split)))
    if step in calendar.snapshots:
        yield SnapshotTaken(step, collected.snapshots.pop(step))
