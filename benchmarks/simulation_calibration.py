"""Describes this machine to the simulator, from runs that are none of the predicted ones.

Three things are measured, in this order.

1. *Contention*: a fixed training loop (its own network, no Ray) in one process, and in one process
   a core at the same time. `contention` is the share of the rate that each loses.
2. *Messages*: the Ray engine trains two blocks that compute next to nothing by backprop, so that
   each message is waited for, with messages of several sizes. A forward operation's span minus the
   operation's own time is what sending costs; from its end to the start of the receiver's work
   passes what receiving costs. Lines through the medians over the sizes give seconds a message
   and seconds a byte.
3. *Daemons*: the CPU time of Ray's own processes and the driver in the same runs, by messages; and
   without messages, while actors wait.

An actor makes the batches here: it sends them, and they are messages like others.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from actors.operations import Kind, Span
from benchmarks.measuring import cpu_seconds
from blocklocal import arrays_dataset
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import Prepared, prepare
from orchestrator.chain import Chain
from orchestrator.clusters import ClusterDescription, MessageSettings, PathSettings
from orchestrator.costs import measure_costs
from orchestrator.engine import RayEngine
from orchestrator.events import StepDone, Worked
from orchestrator.program import Calendar

SIZES = (16, 4096, 16384)
"""Features of the thin network's activations; with `BATCH` rows 2 KB to 2 MB."""
BATCH, CLASSES = 32, 10
WARMUP = 20
IDLE_SECONDS = 2.0


class _Scale(nn.Module):
    """x (B, D) times one number: next to no work, but a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def _thin(features: int, steps: int) -> tuple[RunConfig, Prepared]:
    """Two blocks that send much and do little."""
    first, second, head = _Scale(), _Scale(), nn.Sequential(nn.Unflatten(1, (CLASSES, -1)), _Mean())
    layers: OrderedDict[str, nn.Module] = OrderedDict(a=first, b=second, head=head)
    width = CLASSES * (features // CLASSES)
    x = np.zeros((4 * BATCH, width), dtype=np.float32)
    y = np.arange(4 * BATCH) % CLASSES
    data = arrays_dataset(x, y, x[:CLASSES], y[:CLASSES], validation=0, classes=CLASSES)
    config = make_config(
        {
            "blocks": {"at": ["b"]},
            "rule": {"kind": "backprop"},
            "optimizer": {"kind": "sgd", "lr": 0.0},
            "training": {"steps": steps, "batch": BATCH},
            "engine": {"resources": {"threads": 1}, "source": "actor"},
            "tracking": {"enabled": False},
        }
    )
    return config, prepare(config, model=nn.Sequential(layers), dataset=data)


class _Mean(nn.Module):
    """(B, C, D) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


def run(
    ready: Prepared, config: RunConfig, warmup: int
) -> tuple[dict[str, list[Span]], dict[str, float]]:
    """Train on the connected cluster; spans by actor, CPU seconds a step by process."""
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
    looks: list[tuple[int, dict[str, float]]] = []
    steps = ready.schedule.steps
    try:
        for event in engine.train(range(steps), Calendar()):
            if isinstance(event, Worked):
                spans.setdefault(event.actor, []).extend(event.spans)
            elif isinstance(event, StepDone) and (event.step >= warmup - 1 and not looks):
                looks.append((time.time_ns(), cpu_seconds()))
        looks.append((time.time_ns(), cpu_seconds()))
    finally:
        engine.close()
    (since, before), (until, after) = looks
    ended = [s.ended for s in spans["block1"] if s.kind == "U"]
    # The clock of the driver lags behind the blocks: count what they did between its two looks.
    between = max(1, sum(since < at <= until for at in ended))
    return spans, {n: (after[n] - before.get(n, 0.0)) / between for n in after}


def rate(spans: dict[str, list[Span]], blocks: int, warmup: int) -> float:
    """Steps/s of the last block after the warm-up."""
    ended = [s.ended for s in spans[f"block{blocks}"] if s.kind == "U"]
    return 1e9 * (len(ended) - warmup) / (ended[-1] - ended[warmup - 1])


def _loop(seconds: float, barrier: Any, results: Any) -> None:
    """Train a network of its own; the rate goes to `results`."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(384, 384), nn.ReLU()) for _ in range(4)]
    network, x = nn.Sequential(*layers), torch.randn(96, 384)
    count = 0
    for phase in (0.2, seconds):  # the first warms up
        if phase == seconds:
            barrier.wait()
        count, until = 0, time.perf_counter() + phase
        while time.perf_counter() < until:
            network.zero_grad()
            network(x).square().mean().backward()
            count += 1
    results.put(count / seconds)


def _rates(processes: int, seconds: float) -> float:
    """Mean rate of training loops side by side."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(processes), context.Queue()
    loops = [
        context.Process(target=_loop, args=(seconds, barrier, results)) for _ in range(processes)
    ]
    for loop in loops:
        loop.start()
    found = [results.get() for _ in loops]
    for loop in loops:
        loop.join()
    return statistics.fmean(found)


def contention(cores: int, repeats: int, seconds: float) -> float:
    """The share of a core's rate that is lost when all are busy, median of repeats."""
    lost = []
    for _ in range(repeats):
        alone, together = _rates(1, seconds), _rates(cores, seconds)
        lost.append(1 - together / alone)
    return min(0.95, max(0.0, statistics.median(lost)))


def calibrate(cores: int, *, repeats: int, steps: int, seconds: float) -> ClusterDescription:
    """Describe this machine; the Ray cluster is connected.

    Args:
        steps: of each run with thin blocks, after `WARMUP`.
        seconds: of each training loop.
    """
    slower, idle = contention(cores, repeats, seconds), _idle_cores()
    sending: list[float] = []
    passing: list[float] = []
    between: list[float] = []
    daemons: list[float] = []
    sizes: list[int] = []
    for features in SIZES:
        config, ready = _thin(features, WARMUP + steps)
        blocks = ready.plan.units_of_blocks(ready.units)
        costs = measure_costs(ready.program, blocks, ready.batches, threads=1, repeats=20)
        spans, cpu = run(ready, config, WARMUP)
        one, two = ([s for s in spans[f"block{k}"] if s.step >= WARMUP] for k in (1, 2))
        forwards = [s for s in one if s.kind == Kind.FORWARD]
        work = statistics.median((s.ended - s.started - s.waited - s.blocked) for s in forwards)
        sending.append(work / 1e9 - costs.operations["block1", Kind.FORWARD].seconds)
        taken = {s.step: s.started + s.waited for s in two if s.kind == Kind.FORWARD and s.waited}
        passing.append(
            statistics.median((taken[s.step] - s.ended) / 1e9 for s in forwards if s.step in taken)
        )
        between += _gaps(one) + _gaps(two)
        sizes.append(costs.operations["block1", Kind.FORWARD].sends[0].size)
        others = (n for n in cpu if not n.startswith("ray::_"))
        used = sum(cpu[n] for n in others) - idle / rate(spans, 2, WARMUP)
        daemons.append(max(0.0, used / 3))  # batch, activation, gradient
    send, send_byte = _line(sizes, sending)
    receive, receive_byte = _line(sizes, passing)
    return ClusterDescription(
        kind="cpu",
        nodes=1,
        devices=cores,
        overhead=statistics.median(between),
        # What passes between two processes is CPU work here: the path itself is free.
        within=PathSettings(bandwidth=float("inf")),
        message=MessageSettings(
            send=send,
            send_per_byte=send_byte,
            receive=receive,
            receive_per_byte=receive_byte,
            daemons=statistics.median(daemons),
        ),
        background=min(idle, cores / 2),
        contention=slower,
    )


def _gaps(spans: Sequence[Span]) -> list[float]:
    """Seconds between operations of one actor."""
    return [max(0, b.started - a.ended) / 1e9 for a, b in pairwise(spans)]


def _line(sizes: Sequence[int], seconds: Sequence[float]) -> tuple[float, float]:
    """Least squares through the points, neither part below 0."""
    slope = max(0.0, float(np.polyfit(sizes, seconds, 1)[0]))
    return max(0.0, statistics.fmean(seconds) - slope * statistics.fmean(sizes)), slope


def _idle_cores() -> float:
    """Cores that the cluster's processes use while no run is on."""
    before, started = cpu_seconds(), time.perf_counter()
    time.sleep(IDLE_SECONDS)  # what is measured is what happens when nothing does
    after, took = cpu_seconds(), time.perf_counter() - started
    return max(0.0, sum(s - before.get(n, 0.0) for n, s in after.items()) / took)
