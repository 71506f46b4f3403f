"""Runs on the connected cluster, with every span and the CPU time of every process."""

from __future__ import annotations

import time

from actors.operations import Span
from benchmarks.measuring import cpu_seconds
from blocklocal.config import RunConfig
from blocklocal.preparation import Prepared
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import StepDone, Worked
from orchestrator.program import Calendar


def run(ready: Prepared, config: RunConfig, warmup: int) -> tuple[dict[str, list[Span]], float]:
    """Train on the connected cluster; spans by actor, CPU seconds a step of all processes."""
    engine = RayEngine(
        Chain(
            ready.program,
            ready.plan,
            ready.plan.units_of_blocks(ready.units),
            ready.dataset,
            config.data.augment,
            evaluation_batch=ready.program.settings.batch,
            threads=ready.threads,
            window=config.engine.window,
            transport="object_store",
            source=ready.source,
        )
    )
    spans: dict[str, list[Span]] = {}
    looks: list[tuple[int, float]] = []
    steps = ready.schedule.steps
    try:
        for event in engine.train(range(steps), Calendar()):
            if isinstance(event, Worked):
                spans.setdefault(event.actor, []).extend(event.spans)
            elif isinstance(event, StepDone) and (event.step >= warmup - 1 and not looks):
                looks.append((time.time_ns(), sum(cpu_seconds().values())))
        looks.append((time.time_ns(), sum(cpu_seconds().values())))
    finally:
        engine.close()
    (since, before), (until, after) = looks
    ended = [s.ended for s in spans["block1"] if s.kind == "U"]
    # The clock of the driver lags behind the blocks: count what they did between its two looks.
    between = max(1, sum(since < at <= until for at in ended))
    return spans, (after - before) / between


def rate(spans: dict[str, list[Span]], blocks: int, warmup: int) -> float:
    """Steps/s of the last block after the warm-up."""
    ended = [s.ended for s in spans[f"block{blocks}"] if s.kind == "U"]
    return 1e9 * (len(ended) - warmup) / (ended[-1] - ended[warmup - 1])
