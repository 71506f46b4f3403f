"""What the orchestrator costs a block-step, by number of blocks and over many steps.

    python -m benchmarks.scale

Tiny blocks, so that there is hardly anything but orchestration, in whole runs with their records
(metrics, spans), without tracking. CPU seconds, user and system, are those of the driver and of
Ray's daemons (GCS, raylet), from the end of the warm-up to the last step, divided by steps times
blocks. The blocks share the cores: the wall time a block-step is that of all their work.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import nn

from benchmarks import records
from blocklocal import arrays_dataset
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import prepare
from blocklocal.training import train
from orchestrator.events import Metrics
from orchestrator.incidents import Incident
from orchestrator.placement import even_cpus
from orchestrator.trainer import Observer

WIDTH, BATCH, CLASSES = 16, 8, 4
DAEMONS = {"gcs_server": "gcs", "raylet": "raylet"}
MIB = 2**20


@dataclass
class Marks(Observer):
    """An observer that reads clocks and memory after chosen steps."""

    after: frozenset[int]
    made: list[dict[str, float]] = field(default_factory=list)

    def stepped(self, step: int, metrics: Metrics) -> None:
        if step + 1 in self.after:
            self.made.append(state(step + 1))

    def recovered(self, incident: Incident) -> None:
        raise AssertionError(f"the measurement is spoiled: {incident.sentence()}")


def state(step: int) -> dict[str, float]:
    """Clocks so far, in seconds, and the driver's resident memory in bytes."""
    me = psutil.Process()
    now = {
        "step": step,
        "wall": time.perf_counter(),
        "driver": sum(me.cpu_times()[:2]),
        "resident": me.memory_info().rss,
    }
    for child in me.children():
        if child.name() in DAEMONS:
            now[DAEMONS[child.name()]] = sum(child.cpu_times()[:2])
    return now


def configuration(blocks: int, steps: int, cores: float, directory: Path | None) -> RunConfig:
    return make_config(
        {
            "run": {"directory": None if directory is None else str(directory)},
            "blocks": {"at": [f"layer{k}" for k in range(2, blocks + 1)]},
            "rule": {"kind": "local"},
            "optimizer": {"kind": "sgd", "lr": 0.01},
            "training": {"steps": steps, "batch": BATCH, "evaluate_every": steps},
            "engine": {"resources": {"threads": 1, "cpus": even_cpus(cores, blocks)}},
            "tracking": {"enabled": False},
        }
    )


def watched_run(blocks: int, steps: int, after: Sequence[int]) -> list[dict[str, float]]:
    """Train K tiny blocks; the marks after the given numbers of steps."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(1, blocks + 1):
        layers[f"layer{k}"] = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    layers["head"] = nn.Linear(WIDTH, CLASSES)
    x = np.random.default_rng(0).standard_normal((256, WIDTH), dtype=np.float32)
    y = np.arange(256) % CLASSES
    data = arrays_dataset(x, y, x[:BATCH], y[:BATCH], validation=0)
    marks = Marks(frozenset(after))
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(blocks, steps, psutil.cpu_count() or 1, Path(directory) / "run")
        train(prepare(config, model=nn.Sequential(layers), dataset=data), [marks])
    return marks.made


def cost(first: dict[str, float], last: dict[str, float], blocks: int) -> dict[str, float]:
    """Milliseconds a block-step between two marks."""
    count = (last["step"] - first["step"]) * blocks
    return {
        name: 1000 * (last[name] - first[name]) / count
        for name in ("driver", *DAEMONS.values(), "wall")
    }


def _cell(values: Sequence[float], digits: int = 3) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def page(record: dict[str, Any]) -> str:
    names = ("driver", *DAEMONS.values(), "wall")
    lines = [
        "# The orchestrator's cost a block-step",
        "",
        f"Tiny blocks, rule `local`; CPU milliseconds a block-step of the driver and of Ray's "
        f"daemons, and wall milliseconds with all blocks on the same cores; medians of "
        f"{record['repeats']} interleaved repeats of {record['steps']} steps (lowest to highest), "
        f"the first {record['warmup']} not counted.",
        "",
        "| K | driver | GCS | raylet | wall | driver a step |",
        "|---|---|---|---|---|---|",
    ]
    for blocks, runs in record["sweep"].items():
        costs = [cost(marks[0], marks[-1], int(blocks)) for marks in runs]
        cells = [_cell([c[name] for c in costs]) for name in names]
        cells.append(_cell([c["driver"] * int(blocks) for c in costs]))
        lines.append(f"| {blocks} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Over {record['long_steps']} steps with K = 2, by part of the run; memory of the driver "
        "at the part's end:",
        "",
        "| steps | driver | GCS | raylet | wall | driver's memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    runs = record["long"]
    for i in range(1, len(runs[0])):
        costs = [cost(marks[i - 1], marks[i], 2) for marks in runs]
        cells = [_cell([c[name] for c in costs]) for name in names]
        cells.append(_cell([marks[i]["resident"] / MIB for marks in runs], 1))
        part = f"{runs[0][i - 1]['step']:.0f} to {runs[0][i]['step']:.0f}"
        lines.append(f"| {part} | " + " | ".join(cells) + " |")
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--steps", type=int, default=400, help="of each run of the sweep")
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument("--long-steps", type=int, default=10_000)
    parser.add_argument("--parts", type=int, default=10, help="of the long run")
    arguments = parser.parse_args(words)
    if not 0 < arguments.warmup < arguments.steps:
        parser.error(f"--warmup = {arguments.warmup} is not below --steps = {arguments.steps}")
    if arguments.long_steps % arguments.parts:
        parser.error(f"--long-steps is not a multiple of --parts = {arguments.parts}")
    torch.set_num_threads(1)
    part = arguments.long_steps // arguments.parts
    # The first part begins late by the warm-up: actors get to know each other.
    long_marks = [min(arguments.warmup, part // 2), *range(part, arguments.long_steps + 1, part)]
    sweep: dict[str, list[list[dict[str, float]]]] = {str(k): [] for k in arguments.blocks}
    long: list[list[dict[str, float]]] = []
    with cluster(configuration(2, 1, 1, None)):
        for _ in range(arguments.repeats):
            for blocks in arguments.blocks:
                ends = (arguments.warmup, arguments.steps)
                sweep[str(blocks)].append(watched_run(blocks, arguments.steps, ends))
            long.append(watched_run(2, arguments.long_steps, long_marks))
    record = {
        "environment": records.environment(),
        "repeats": arguments.repeats,
        "steps": arguments.steps,
        "warmup": arguments.warmup,
        "long_steps": arguments.long_steps,
        "sweep": sweep,
        "long": long,
    }
    records.write("scale", record, page(record))


if __name__ == "__main__":
    main()
