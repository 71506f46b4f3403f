"""One measured run of our engine, with where each block's time and all CPU time went."""

from __future__ import annotations

import time

from actors.operations import Span
from benchmarks.measuring import Sample, cpu_seconds
from benchmarks.workloads import Workload, configuration, prepared
from blocklocal.config import RunConfig
from blocklocal.engines import engine_of
from learning.messages import block_name
from orchestrator.events import StepDone, Worked
from orchestrator.program import Calendar
from orchestrator.settings import SourcePlace, Transport

PARTS = ("step_ms", "work_ms", "waiting_ms", "blocked_ms", "between_ms")
"""Of a block's step: all of it; inside operations, waiting for a message, waiting for room at the
next block, between operations."""


def run_engine(
    workload: Workload,
    warmup: int,
    steps: int,
    *,
    transport: Transport,
    source: SourcePlace = "block1",
    rule: str = "local",
    order: str = "1f1b",
    shards: int = 1,
) -> Sample:
    """Train on the cluster that is connected; the actors have ended when it returns.

    The source makes the batches and sends them: that is a part of what is measured.

    Returns:
        Steps/s of the last block from the end of the warm-up, and in the details `blocks` (ms a
        step by the names of `PARTS`) and `cpu_ms_a_step` by process.
    """
    config = configuration(
        workload,
        warmup + steps,
        rule=rule,
        order=order,
        shards=shards,
        transport=transport,
        source=source,
    )
    spans, cpu = _train(workload, config, warmup)
    last = [s.ended for s in spans[block_name(workload.blocks)] if s.kind == "U"]
    rate = 1e9 * steps / (last[-1] - last[warmup - 1])
    parts = {
        block_name(k): _parts(spans[block_name(k)], warmup, steps)
        for k in range(1, workload.blocks + 1)
    }
    return {"rate": rate, "details": {"blocks": parts, "cpu_ms_a_step": cpu}}


def _train(
    workload: Workload, config: RunConfig, warmup: int
) -> tuple[dict[str, list[Span]], dict[str, float]]:
    """The spans of all actors, and the CPU milliseconds a step by process, of a part of the steps.

    That part begins with the first report after the warm-up; a short run may end before it.
    """
    ready = prepared(workload, config)
    engine = engine_of(ready)
    spans: dict[str, list[Span]] = {}
    looks: list[tuple[int, dict[str, float]]] = []
    try:
        for event in engine.train(range(ready.schedule.steps), Calendar()):
            if isinstance(event, Worked):
                spans.setdefault(event.actor, []).extend(event.spans)
            elif isinstance(event, StepDone) and event.step == warmup - 1:
                looks.append((time.time_ns(), cpu_seconds()))
        looks.append((time.time_ns(), cpu_seconds()))
    finally:
        engine.close()
    (since, before), (until, after) = looks
    last = spans[block_name(workload.blocks)]
    steps = sum(s.kind == "U" and since < s.ended < until for s in last)
    if steps == 0:
        return spans, {}
    used = {name: after[name] - before.get(name, 0.0) for name in sorted(after)}
    return spans, {name: 1000 * seconds / steps for name, seconds in used.items()}


def _parts(spans: list[Span], warmup: int, steps: int) -> dict[str, float]:
    """Milliseconds a step of one block, by the names of `PARTS`."""
    mine = [s for s in spans if s.step >= warmup]
    total = mine[-1].ended - mine[0].started
    waited, blocked = sum(s.waited for s in mine), sum(s.blocked for s in mine)
    work = sum(s.ended - s.started for s in mine) - waited - blocked
    values = (total, work, waited, blocked, total - work - waited - blocked)
    return {name: value / 1e6 / steps for name, value in zip(PARTS, values, strict=True)}
