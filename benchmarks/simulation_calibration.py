"""Describes this machine to the simulator, from runs that are none of the predicted ones.

1. *Messages*: the Ray engine trains two blocks that compute next to nothing by backprop, so that
   each message is waited for, with messages of several sizes. A forward operation's span minus the
   operation's own time is what sending costs; from its end to the start of the receiver's work
   passes what receiving costs. Lines through the medians over the sizes give seconds a message
   and seconds a byte.
2. *Background*: what CPU time all processes take while no run is on.
3. *Cores*, and what messages take of them besides: `benchmarks/simulation_cores.py`.

An actor makes the batches in 1: it sends them, and they are messages like others.
"""

from __future__ import annotations

import statistics
import time
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from actors.operations import Kind, Span
from benchmarks.measuring import cpu_seconds
from benchmarks.simulation_cores import fit_cores
from benchmarks.simulation_runs import run
from blocklocal import arrays_dataset
from blocklocal.config import make_config
from blocklocal.preparation import Prepared, prepare
from orchestrator.clusters import ClusterDescription, MessageSettings, PathSettings
from orchestrator.costs import measure_costs

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


def _thin(features: int, steps: int) -> Prepared:
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
    return prepare(config, model=nn.Sequential(layers), dataset=data)


class _Mean(nn.Module):
    """(B, C, D) to (B, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(2)


def calibrate(cores: int, *, repeats: int, steps: int, tiny: bool = False) -> ClusterDescription:
    """Describe this machine; the Ray cluster is connected.

    Args:
        repeats: runs of each kind that fit the cores.
        steps: of each run, after `WARMUP`.
        tiny: with small networks, to see that it runs.
    """
    machine = ClusterDescription(
        kind="cpu",
        nodes=1,
        devices=cores,
        # What passes between two processes is CPU work here: the path itself is free.
        within=PathSettings(bandwidth=float("inf")),
    )
    return fit_cores(_with_messages(machine, steps), repeats, steps, tiny=tiny)


def _with_messages(machine: ClusterDescription, steps: int) -> ClusterDescription:
    """Add what messages cost, what passes between two operations, and what idle daemons take."""
    sending: list[float] = []
    passing: list[float] = []
    between: list[float] = []
    sizes: list[int] = []
    for features in SIZES:
        ready = _thin(features, WARMUP + steps)
        blocks = ready.plan.units_of_blocks(ready.units)
        costs = measure_costs(ready.program, blocks, ready.batches, threads=1, repeats=20)
        spans = run(ready)
        one, two = ([s for s in spans[f"block{k}"] if s.step >= WARMUP] for k in (1, 2))
        forwards = [s for s in one if s.kind == Kind.FORWARD]
        work = statistics.median(map(_work, forwards))
        sending.append(work - costs.operations["block1", Kind.FORWARD].seconds)
        taken = {s.step: s.started + s.waited for s in two if s.kind == Kind.FORWARD and s.waited}
        passing.append(
            statistics.median((taken[s.step] - s.ended) / 1e9 for s in forwards if s.step in taken)
        )
        between += _gaps(one) + _gaps(two)
        sizes.append(costs.operations["block1", Kind.FORWARD].sends[0].size)
    idle = _idle_cores()  # not before: new clusters are busy with themselves
    send, send_byte = _line(sizes, sending)
    receive, receive_byte = _line(sizes, passing)
    message = MessageSettings(
        send=send,
        send_per_byte=send_byte,
        receive=receive,
        receive_per_byte=receive_byte,
    )
    return machine.model_copy(
        update={
            "overhead": statistics.median(between),
            "message": message,
            "background": min(idle, machine.devices / 2),
        }
    )


def _work(span: Span) -> float:
    """Seconds of one operation without waiting."""
    return (span.ended - span.started - span.waited - span.blocked) / 1e9


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
