"""How near two decoupled blocks come to two processes that never communicate.

    python -m benchmarks.decoupling

K = 2 equal blocks (1024-wide MLP, 4 layers a block, batch 128: 0.5 MB activations), rule `local`,
one thread each. The ceiling is the same two blocks in two processes without messages; repeats are
interleaved. The page says where the difference goes: waiting, slower work inside operations, and
time between operations, with the CPU time of Ray's own processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import time
from collections import OrderedDict
from typing import Any

import numpy as np
import psutil
import ray
import torch
from torch import nn

from actors.operations import Span
from benchmarks import records
from blocklocal import arrays_dataset
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import Prepared, prepare
from learning.build import build_block
from orchestrator.engine import RayEngine
from orchestrator.events import StepDone, Worked
from orchestrator.program import Calendar

WIDTH, LAYERS, BATCH, CLASSES = 1024, 4, 128, 10
WARMUP = 20  # steps before the clock starts


def network() -> nn.Sequential:
    """Two equal blocks of `LAYERS` layers; the head is a part of the second."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(2 * LAYERS):
        layers[f"layer{i + 1}"] = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    layers["head"] = nn.Linear(WIDTH, CLASSES)
    return nn.Sequential(layers)


def configuration(steps: int, rule: str = "local", threads: int = 1) -> RunConfig:
    return make_config(
        {
            "blocks": {"at": [f"layer{LAYERS + 1}"]},
            "rule": {"kind": rule},
            "optimizer": {"kind": "sgd", "lr": 0.01},
            "training": {"steps": steps, "batch": BATCH},
            "engine": {"resources": {"threads": threads}},
            "tracking": {"enabled": False},
        }
    )


def prepared(config: RunConfig) -> Prepared:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1024, WIDTH), dtype=np.float32)
    y = np.arange(1024) % CLASSES
    data = arrays_dataset(x, y, x[:BATCH], y[:BATCH], validation=0)
    torch.manual_seed(0)
    return prepare(config, model=network(), dataset=data)


def block_alone(k: int, steps: int, barrier: Any, results: Any) -> None:
    """One block's steps on inputs that are there already."""
    torch.set_num_threads(1)
    ready = prepared(configuration(steps))
    learner = build_block(ready.program, k, ready.plan.units_of_blocks(ready.units)[k - 1])
    message = {"x": torch.randn(BATCH, WIDTH), "y": torch.arange(BATCH) % CLASSES}
    started = 0.0
    for step in range(steps):
        if step == WARMUP:
            barrier.wait()
            started = time.perf_counter()
        learner.forward(step, 0, message)
        learner.assess(step, 0)
        learner.update(step)
    results.put((k, (steps - WARMUP) / (time.perf_counter() - started)))


def ceiling(steps: int) -> float:
    """Steps/s of two blocks at once without messages: the slower one's."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    blocks = [
        context.Process(target=block_alone, args=(k, steps, barrier, results)) for k in (1, 2)
    ]
    for process in blocks:
        process.start()
    rates = dict(results.get() for _ in blocks)
    for process in blocks:
        process.join()
    return min(rates.values())


def one_process(steps: int, rule: str, threads: int) -> float:
    """Steps/s of the sequential engine."""
    ready = prepared(configuration(steps, rule, threads))
    from orchestrator.inline import InlineEngine

    engine = InlineEngine(
        ready.program,
        ready.plan.units_of_blocks(ready.units),
        ready.batches,
        evaluation_batch=BATCH,
        threads=threads,
    )
    started = 0.0
    for event in engine.train(range(steps), Calendar()):
        if isinstance(event, StepDone) and event.step == WARMUP - 1:
            started = time.perf_counter()
    rate = (steps - WARMUP) / (time.perf_counter() - started)
    engine.close()
    return rate


def decoupled(steps: int, window: int) -> dict[str, Any]:
    """Steps/s of the Ray engine, and where each block's time went."""
    ready = prepared(configuration(steps))
    engine = RayEngine(
        ready.program,
        ready.plan,
        ready.plan.units_of_blocks(ready.units),
        ready.dataset,
        ready.config.data.augment,
        evaluation_batch=BATCH,
        threads=1,
        window=window,
    )
    spans: dict[str, list[Span]] = {}
    before: dict[str, float] = {}
    for event in engine.train(range(steps), Calendar()):
        if isinstance(event, Worked):
            spans.setdefault(event.actor, []).extend(event.spans)
        elif isinstance(event, StepDone) and event.step == WARMUP - 1:
            before = cpu_seconds()
    used = {name: seconds - before.get(name, 0.0) for name, seconds in cpu_seconds().items()}
    engine.close()
    counted = steps - WARMUP
    last = [s for s in spans["block2"] if s.kind == "U"]
    wall = (last[-1].ended - last[WARMUP - 1].ended) / 1e9
    record: dict[str, Any] = {
        "steps_per_second": (steps - WARMUP) / wall,
        "cpu_ms_a_step": {name: 1000 * s / counted for name, s in sorted(used.items())},
    }
    for actor in ("block1", "block2"):
        mine = [s for s in spans[actor] if s.step >= WARMUP]
        total = mine[-1].ended - mine[0].started
        waited, blocked = sum(s.waited for s in mine), sum(s.blocked for s in mine)
        inside = sum(s.ended - s.started for s in mine) - waited - blocked
        record[actor] = {
            name: value / 1e6 / (steps - WARMUP)
            for name, value in {
                "step_ms": total,
                "work_ms": inside,
                "waiting_ms": waited,
                "blocked_ms": blocked,
                "between_ms": total - inside - waited - blocked,
            }.items()
        }
    return record


def cpu_seconds() -> dict[str, float]:
    """CPU time so far of this process and of Ray's, by name."""
    me = psutil.Process()
    used = {"driver": sum(me.cpu_times()[:2])}
    for child in me.children(recursive=True):
        name = child.name() or "other"
        used[name] = used.get(name, 0.0) + sum(child.cpu_times()[:2])
    return used


def page(record: dict[str, Any]) -> str:
    medians = {name: statistics.median(values) for name, values in record["rates"].items()}
    top = medians["ceiling"]
    lines = [
        "# Two decoupled blocks against two processes that never communicate",
        "",
        f"K = 2 equal blocks of {LAYERS} layers of width {WIDTH}, batch {BATCH} (0.5 MB "
        f"activations), one thread each; medians of {record['repeats']} interleaved repeats of "
        f"{record['steps']} steps (the first {WARMUP} not counted).",
        "",
        "| program | steps/s | lowest | highest | share of the ceiling |",
        "|---|---|---|---|---|",
    ]
    for name, values in record["rates"].items():
        lines.append(
            f"| {name} | {medians[name]:.1f} | {min(values):.1f} | {max(values):.1f} "
            f"| {medians[name] / top:.2f} |"
        )
    lines += [
        "",
        f"Where a block-step's time goes with Ray (ms; the ceiling takes {1000 / top:.1f}):",
        "",
    ]
    names = list(record["details"][0]["block1"])
    lines += ["| block | " + " | ".join(names) + " |", "|---|" + "---|" * len(names)]
    for block in ("block1", "block2"):
        cells = [
            f"{statistics.median(d[block][name] for d in record['details']):.2f}" for name in names
        ]
        lines.append(f"| {block} | " + " | ".join(cells) + " |")
    cpu: dict[str, list[float]] = {}
    for detail in record["details"]:
        for name, value in detail["cpu_ms_a_step"].items():
            cpu.setdefault(name, []).append(value)
    lines += ["", "CPU time a step by process (ms), above 0.05:", ""]
    for name, values in cpu.items():
        if statistics.median(values) > 0.05:
            lines.append(f"- {name}: {statistics.median(values):.2f}")
    others = sum(statistics.median(v) for name, v in cpu.items() if name != "ray::_Block")
    cores = record["environment"]["cores"]
    step = statistics.median(d["block2"]["step_ms"] for d in record["details"])
    lines += [
        "",
        f"A step takes {step - 1000 / top:.1f} ms more than the ceiling's. The blocks hardly wait: "
        f"their own operations take longer, because source, driver and Ray's daemons use "
        f"{others:.1f} ms of CPU a step, {others / cores:.1f} ms on each of the {cores} cores that "
        "the blocks work on; the rest (transport threads in the blocks, caches) is not told apart.",
    ]
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--window", type=int, default=3)
    arguments = parser.parse_args()
    steps = arguments.steps
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    rates: dict[str, list[float]] = {}
    details = []
    with cluster(configuration(steps)):
        for _ in range(arguments.repeats):
            rates.setdefault("ceiling", []).append(ceiling(steps))
            details.append(decoupled(steps, arguments.window))
            rates.setdefault("Ray engine, local", []).append(details[-1]["steps_per_second"])
            for rule in ("local", "backprop"):
                for threads in (1, 2):
                    name = f"one process, {threads} threads, {rule}"
                    rates.setdefault(name, []).append(one_process(steps, rule, threads))
        nodes = len(ray.nodes())
    record = {
        "environment": records.environment(),
        "nodes": nodes,
        "repeats": arguments.repeats,
        "steps": steps,
        "window": arguments.window,
        "rates": rates,
        "details": details,
    }
    records.write("decoupling", record, page(record))


if __name__ == "__main__":
    main()
