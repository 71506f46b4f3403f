"""What every actor did when: reading spans, measuring idle time and overlap, writing a trace."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from actors.operations import Kind
from orchestrator.dependencies import LANE_MARK
from orchestrator.lines import damaged, joined, read_lines
from orchestrator.record_files import replace_record

EVALUATION = frozenset({Kind.EVALUATE, Kind.TALLY})
TRAINING = frozenset({Kind.FORWARD, Kind.ASSESS, Kind.GRADIENT, Kind.UPDATE})
_KINDS = frozenset(kind.value for kind in Kind)
_GROUPS = ("source", "block", "feedback")


class ActorSpan(NamedTuple):
    """What one operation of one actor took.

    Attributes:
        started, ended: Unix times in nanoseconds.
        waited: nanoseconds at the beginning of the operation spent waiting for its message.
        blocked: nanoseconds at its end spent waiting for room at the next block.
    """

    actor: str
    kind: str
    step: int
    shard: int
    started: int
    ended: int
    waited: int
    blocked: int = 0

    @property
    def worked_from(self) -> int:
        """Unix time in nanoseconds at which the waiting was over."""
        # The wait is measured by another clock than the ends, and may be the longer by a little.
        return min(self.started + self.waited, self.ended)

    @property
    def worked_to(self) -> int:
        """Unix time in nanoseconds at which the work was done."""
        return max(self.ended - self.blocked, self.worked_from)

    @property
    def worked(self) -> int:
        """Nanoseconds of work: without the waits, and 0 if the wall clock was set back."""
        return max(self.worked_to - self.worked_from, 0)


class Concurrency(NamedTuple):
    """How much the blocks of a run worked side by side.

    Attributes:
        share: share (0 to 1) of the run's wall time with at least two blocks at work.
        steps_apart: largest difference of steps between blocks at work at the same instant.
    """

    share: float
    steps_apart: int


def read_spans(path: str | Path) -> list[ActorSpan]:
    """Read the spans a run wrote, one JSON object a line.

    A last line without its line feed is left out: a killed run was writing it.

    Raises:
        UserError: when the file cannot be read or a line of it is not a span.
    """
    spans = []
    for number, (_, record) in enumerate(read_lines(Path(path)), start=1):
        try:
            spans.append(_span(record))
        except ValueError as error:
            raise damaged(Path(path), number, error) from error
    return spans


def _span(record: dict[str, Any]) -> ActorSpan:
    if set(record) != set(ActorSpan._fields):
        raise ValueError(f"its keys must be {', '.join(ActorSpan._fields)}")
    for name, value in record.items():
        kind = str if name in ("actor", "kind") else int
        if type(value) is not kind:  # isinstance would let true and false pass for numbers
            raise ValueError(f"{name} is {value!r}, not of type {kind.__name__}")
    if record["kind"] not in _KINDS:
        raise ValueError(f"kind {record['kind']!r} is none of {', '.join(sorted(_KINDS))}")
    return ActorSpan(**record)


def actors_of(spans: Iterable[ActorSpan]) -> list[str]:
    """List the actors: source, block1 to blockK, feedback1 to feedbackM, then any others.

    Lane by lane, where there are several.
    """
    return sorted({span.actor for span in spans}, key=lambda actor: (*kin_of(actor), actor))


def kin_of(actor: str) -> tuple[int, int, int]:
    """The lane of an actor, which kind it is of, and its number among those of its kind."""
    learner, _, lane = actor.partition(LANE_MARK)
    name = learner.rstrip("0123456789")
    group = _GROUPS.index(name) if name in _GROUPS else len(_GROUPS)
    return int(lane or 1), group, int(learner[len(name) :] or 0)


def block_of(actor: str) -> int | None:
    """Give the number of a block's actor, None for the other actors."""
    _, group, number = kin_of(actor)
    return number if group == _GROUPS.index("block") else None


def _wall(spans: Sequence[ActorSpan]) -> int:
    return max(span.ended for span in spans) - min(span.started for span in spans)


def idle_shares(spans: Sequence[ActorSpan]) -> dict[str, float]:
    """Measure how long each actor did not work.

    Returns:
        actor -> share (0 to 1) of the time from the first to the last span of the run, of all
        actors; waiting for a message, or for room at the next block, is not work.
    """
    worked = dict.fromkeys(actors_of(spans), 0)
    for span in spans:
        worked[span.actor] += span.worked
    wall = _wall(spans) if spans else 0
    return {actor: 1 - time / wall if wall > 0 else 0.0 for actor, time in worked.items()}


def concurrency(spans: Sequence[ActorSpan]) -> Concurrency:
    """Measure how much the blocks worked side by side; all their operations count as work."""
    work = [span for span in spans if block_of(span.actor) is not None and span.worked > 0]
    # Ends come first: a span that ends when another starts has no instant in common with it.
    events = sorted(
        [(span.worked_to, 0, at) for at, span in enumerate(work)]
        + [(span.worked_from, 1, at) for at, span in enumerate(work)]
    )
    active: dict[int, ActorSpan] = {}
    together, apart, before = 0, 0, 0
    for now, starts, at in events:
        if len({span.actor for span in active.values()}) >= 2:
            together += now - before
        before = now
        if not starts:
            del active[at]
            continue
        active[at] = work[at]
        steps = [span.step for span in active.values()]
        apart = max(apart, max(steps) - min(steps))
    return Concurrency(together / _wall(spans) if work else 0.0, apart)


def write_trace(spans: Sequence[ActorSpan], path: str | Path) -> None:
    """Write the spans as Chrome trace events, to be opened in ui.perfetto.dev or chrome://tracing.

    One row an actor; times in microseconds from the first span of the run; an arrow from the
    forward pass of each block to that of the next block on the same step and shard.

    Raises:
        RecordError: when the file cannot be written.
    """
    # One event a line, written as it is made: a long run has millions.
    replace_record(Path(path), joined(_lines_of(spans)))


def _lines_of(spans: Sequence[ActorSpan]) -> Iterator[bytes]:
    yield b'{"displayTimeUnit": "ms", "traceEvents": ['
    for at, event in enumerate(_events(spans)):
        yield ((",\n" if at else "\n") + json.dumps({"pid": 1, **event})).encode()
    yield b"\n]}\n"


def _events(spans: Sequence[ActorSpan]) -> Iterator[Mapping[str, object]]:
    rows = {actor: row for row, actor in enumerate(actors_of(spans), start=1)}
    yield {"ph": "M", "name": "process_name", "args": {"name": "blocklocal"}}
    for actor, row in rows.items():
        yield {"ph": "M", "name": "thread_name", "tid": row, "args": {"name": actor}}
        yield {"ph": "M", "name": "thread_sort_index", "tid": row, "args": {"sort_index": row}}
    first = min((span.started for span in spans), default=0)
    flows = 0
    sent: dict[tuple[int, int, int], ActorSpan] = {}
    for span in sorted(spans, key=lambda span: span.worked_from):
        event = {
            "ph": "X",
            "tid": rows[span.actor],
            "args": {"step": span.step, "shard": span.shard, "kind": span.kind},
        }
        if span.worked_from > span.started:
            yield {
                **event,
                "name": "wait",
                "cat": "wait",
                "ts": (span.started - first) / 1e3,
                "dur": (span.worked_from - span.started) / 1e3,
            }
        yield {
            **event,
            "name": f"{span.kind} {span.step}",
            "cat": "evaluation" if span.kind in EVALUATION else "training",
            "ts": (span.worked_from - first) / 1e3,
            "dur": span.worked / 1e3,
        }
        block = block_of(span.actor)
        if block is None or span.kind != Kind.FORWARD:
            continue
        # In order of time, so that a step done again by a resumed run replaces its first sender.
        sender = sent.pop((block - 1, span.step, span.shard), None)
        sent[block, span.step, span.shard] = span
        if sender is not None:
            flow = {"name": "stream", "cat": "stream", "id": (flows := flows + 1)}
            # A flow belongs to the event around its time, hence the middle, not an end.
            for phase, end in (("s", sender), ("f", span)):
                middle = (end.worked_from + end.worked // 2 - first) / 1e3
                bound = {"bp": "e"} if phase == "f" else {}
                yield {**flow, "ph": phase, "tid": rows[end.actor], "ts": middle, **bound}
