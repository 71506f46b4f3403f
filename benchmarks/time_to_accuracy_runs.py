"""One run to a fixed accuracy: trained by the clock, its copies evaluated afterwards."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from benchmarks.time_to_accuracy_tasks import Task, configuration
from blocklocal.clusters import cluster
from blocklocal.engines import engine_of
from blocklocal.preparation import Prepared, prepare
from learning.sequential import SequentialEngine
from orchestrator.events import SnapshotTaken, Worked
from orchestrator.program import Calendar


def measure(task: Task, name: str, blocks: int, seed: int) -> dict[str, Any]:
    """Train once; seconds and value at each copy."""
    config = configuration(task, name, blocks, seed)
    with cluster(config):
        ready = prepare(config)
        copies = frozenset({*range(task.every - 1, task.steps, task.every), task.steps - 1})
        states: dict[int, dict[str, dict[str, Tensor]]] = {}
        first, ended = math.inf, dict[int, int]()
        engine = engine_of(ready)
        try:
            for event in engine.train(range(task.steps), Calendar(snapshots=copies)):
                if isinstance(event, SnapshotTaken):
                    states[event.step] = event.state
                elif isinstance(event, Worked):
                    for span in event.spans:
                        first = min(first, span.started + span.waited)
                        if span.kind == "U":
                            ended[span.step] = max(ended.get(span.step, 0), span.ended)
        finally:
            engine.close()
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    curve = [
        {"step": step + 1, "seconds": (ended[step] - first) / 1e9, "value": value}
        for step, value in _evaluated(ready, states, task)
    ]
    torch.set_num_threads(before)
    return {
        "curve": curve,
        "seconds_to_target": next((c["seconds"] for c in curve if task.reached(c["value"])), None),
        "steps_to_target": next((c["step"] for c in curve if task.reached(c["value"])), None),
        "steps_per_second": len(ended) / curve[-1]["seconds"],
    }


def _evaluated(
    ready: Prepared, states: dict[int, dict[str, dict[str, Tensor]]], task: Task
) -> Iterator[tuple[int, float]]:
    """Accuracy or perplexity of the last block after each step, on the first test rows."""
    engine = SequentialEngine(ready.program, ready.plan.units_of_blocks(ready.units))
    size = ready.config.training.evaluation_batch
    last = f"block{len(ready.plan.blocks)}"
    for step in sorted(states):
        engine.load_state_dict(states[step], step + 1)
        batches = islice(ready.batches.evaluation("test", size), math.ceil(task.rows / size))
        # The tables of the next step: a state holds what is still to be taken.
        metrics = engine.evaluate(step + 1, "test", batches)[last]
        yield step, math.exp(metrics["loss"]) if task.falling else metrics["accuracy"]
