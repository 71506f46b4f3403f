"""Runs on the connected cluster, with every span."""

from __future__ import annotations

from actors.operations import Span
from blocklocal.config import RunConfig
from blocklocal.preparation import Prepared
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import Worked
from orchestrator.program import Calendar


def run(ready: Prepared, config: RunConfig) -> dict[str, list[Span]]:
    """Train on the connected cluster; spans by actor."""
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
    try:
        for event in engine.train(range(ready.schedule.steps), Calendar()):
            if isinstance(event, Worked):
                spans.setdefault(event.actor, []).extend(event.spans)
    finally:
        engine.close()
    return spans


def rate(spans: dict[str, list[Span]], blocks: int, warmup: int) -> float:
    """Steps/s of the last block after the warm-up."""
    ended = [s.ended for s in spans[f"block{blocks}"] if s.kind == "U"]
    return 1e9 * (len(ended) - warmup) / (ended[-1] - ended[warmup - 1])
