"""Runs on the connected cluster, with every span."""

from __future__ import annotations

from actors.operations import Span
from blocklocal.engines import engine_of
from blocklocal.preparation import Prepared
from orchestrator.events import Worked
from orchestrator.program import Calendar


def run(ready: Prepared) -> dict[str, list[Span]]:
    """Train on the connected cluster; spans by actor."""
    engine = engine_of(ready)
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
