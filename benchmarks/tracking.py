"""What tracking costs a step, and whether MLflow still lists a sweep of a thousand trials.

    python -m benchmarks.tracking            # five repeats, about ten minutes
    python -m benchmarks.tracking --quick    # tiny, to see that it works

Steps: eight blocks that wait instead of computing, about 20 steps/s under `local`, whole runs with
and without MLflow (SQLite). Each step has two metrics a block. The clock starts when MLflow's
import is over and covers several of its batches. Blocks that wait leave the cores free, so that the
CPU seconds of the driver are given as well: what tracking takes from blocks that compute.

Sweep: trials with the parameters of a configuration and metrics of eight blocks, written by one
`SweepTracker`, and listed by a new client, all at once, with their parameters and last metrics.
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
from torch import nn

from actors.operations import Span
from benchmarks import records
from benchmarks.measuring import Repeat, Sample, interleaved, quietness, rates, ratios, spread
from benchmarks.reach import BATCH, CLASSES, WIDTH, Waiting
from benchmarks.survival import keep
from blocklocal import arrays_dataset
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import prepare
from blocklocal.sweep_tracked import parameters_of
from blocklocal.training import train
from orchestrator.trainer import Observer
from tuning.sweep_tracking import SweepTracker
from tuning.tracking import TrackingSettings

BLOCKS = 8
GRAIN_SECONDS = 0.0225
"""Of a forward pass and of a backward pass: two, and what is around them, are 50 ms."""
MOST_PERCENT = 1.0
LIST_SECONDS = 2.0
WITH, WITHOUT = "with MLflow", "without"


@dataclass
class Clock(Observer):
    """When block 1 ended its updates, and the driver's CPU seconds at the first and last report."""

    skip: int
    ended: dict[int, float] = field(default_factory=dict)
    cpu: list[tuple[int, float]] = field(default_factory=list)  # the last step, seconds

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        if actor == "block1":
            self.ended |= {s.step: s.ended / 1e9 for s in spans if s.kind == "U"}
            if max(self.ended) >= self.skip:
                used = sum(psutil.Process().cpu_times()[:2])
                self.cpu.append((max(self.ended), used))

    def sample(self) -> Sample:
        """Steps a second, and milliseconds of the driver's CPU a step."""
        last = max(self.ended)
        rate = (last - self.skip) / (self.ended[last] - self.ended[self.skip])
        (first, before), (final, after) = self.cpu[0], self.cpu[-1]
        cost = 1000 * (after - before) / max(1, final - first)
        return {"rate": rate, "details": {"cpu_ms": cost}}


def configuration(
    steps: int, directory: Path | None, *, tracked: bool, blocks: int = BLOCKS
) -> RunConfig:
    return make_config(
        {
            "run": {"directory": None if directory is None else str(directory)},
            "blocks": {"at": [f"layer{k}" for k in range(2, blocks + 1)]},
            "rule": {"kind": "local"},
            "optimizer": {"kind": "sgd", "lr": 0.01},
            "training": {"steps": steps, "batch": BATCH, "evaluate_every": steps},
            "engine": {"resources": {"threads": 1, "cpus": 0.1}},
            "tracking": {
                "enabled": tracked,
                "uri": f"sqlite:///{directory.parent}/mlflow.db" if directory else None,
            },
        }
    )


def run_once(steps: int, skip: int, grain: float, *, tracked: bool, blocks: int = BLOCKS) -> Sample:
    """Train once."""
    layers = [(f"layer{k}", Waiting(grain)) for k in range(1, blocks + 1)]
    model = nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(WIDTH, CLASSES))]))
    x = np.random.default_rng(0).standard_normal((64, WIDTH), dtype=np.float32)
    y = np.arange(64) % CLASSES
    data = arrays_dataset(x, y, x[:BATCH], y[:BATCH], validation=0)
    clock = Clock(skip)
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(steps, Path(directory) / "run", tracked=tracked, blocks=blocks)
        train(prepare(config, model=model, dataset=data), [clock])
    return clock.sample()


def overheads(repeats: Sequence[Repeat]) -> list[float]:
    """Percent by which tracking makes a step longer, by repeat."""
    return [100 * (ratio - 1) for ratio in ratios(repeats, WITHOUT, WITH)]


def sweep(trials: int, steps: int, listings: int) -> dict[str, Any]:
    """Write a sweep to a SQLite file and list it; seconds of both."""
    from mlflow.tracking import MlflowClient

    parameters = parameters_of(make_config({}))
    blocks = range(1, BLOCKS + 1)
    names = [f"train/block{k}/{what}" for k in blocks for what in ("loss", "accuracy")]
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        settings = TrackingSettings(uri=f"sqlite:///{home}/mlflow.db", patience=600)
        tracker = SweepTracker(settings, home, "sweep", {}, {"rule": "local"})
        began = time.perf_counter()
        for i in range(trials):
            name = f"trial{i}"
            tracker.start_trial(name, {**parameters, "optimizer.lr": i}, {"rule": "local"})
            for step in range(steps):
                tracker.log_metrics(name, step, dict.fromkeys(names, step / (i + 1)))
            tracker.end_trial(name, "FINISHED")
        tracker.end("FINISHED")
        wrote = time.perf_counter() - began
        took = []
        for _ in range(listings):
            client = MlflowClient(f"sqlite:///{home}/mlflow.db")
            (experiment,) = [e for e in client.search_experiments() if e.name == "blocklocal"]
            began = time.perf_counter()
            runs = client.search_runs(
                [experiment.experiment_id],
                f"tags.mlflow.parentRunId = '{tracker.run_id}'",
                max_results=trials,
            )
            took.append(time.perf_counter() - began)
            assert len(runs) == trials and all(len(r.data.metrics) == len(names) for r in runs)
    return {
        "trials": trials,
        "parameters": len(parameters),
        "metrics": len(names) * steps,
        "write_s": wrote,
        "list_s": took,
    }


def page(record: dict[str, Any]) -> str:
    """The Markdown page of a record."""
    done: list[Repeat] = record["repeats"]
    trials: dict[str, Any] = record["sweep"]
    percent, listed = overheads(done), trials["list_s"]
    cpu = {
        name: [r["samples"][name]["details"]["cpu_ms"] for r in done] for name in (WITHOUT, WITH)
    }
    cost = statistics.median(percent)
    shown = statistics.median(listed)
    lines = [
        "# What tracking costs",
        "",
        f"{BLOCKS} blocks that wait instead of computing, {2 * BLOCKS} metrics a step, MLflow in a "
        f"SQLite file; medians (lowest to highest) of {len(done)} interleaved repeats of "
        f"{record['steps']} steps, the first {record['skip']} not counted; a new client lists the "
        "trials of a sweep, with all parameters and last metrics.",
        "",
        "| what | measured | target | reached |",
        "|---|---|---|---|",
        f"| longer steps through tracking, % | {spread(percent)} | {MOST_PERCENT:g} "
        f"| {'yes' if cost <= MOST_PERCENT else 'no'} |",
        f"| seconds to list {trials['trials']} trials | {spread(listed)} | {LIST_SECONDS:g} "
        f"| {'yes' if shown <= LIST_SECONDS else 'no'} |",
        "",
        f"Steps/s: {spread(rates(done, WITHOUT))} without, {spread(rates(done, WITH))} with. CPU "
        f"of the driver a step, ms: {spread(cpu[WITHOUT])} without, {spread(cpu[WITH])} with. "
        f"A trial with {trials['parameters']} parameters and {trials['metrics']} metrics was "
        f"written in {1000 * trials['write_s'] / trials['trials']:.0f} ms.",
        "",
        quietness(done),
        "",
        records.footer(record["environment"]),
    ]
    return "\n".join(lines) + "\n"


def options(words: Sequence[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--steps", type=int, default=400, help="of each run")
    made.add_argument("--skip", type=int, default=150, help="of them, before the clock starts")
    made.add_argument("--trials", type=int, default=1000)
    made.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    made.add_argument("--results", type=Path, help=f"directory; by default {records.RESULTS}")
    return made.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure both, and write the results."""
    chosen = options(words)
    repeats, steps, skip = chosen.repeats, chosen.steps, chosen.skip
    grain, trials, listings = GRAIN_SECONDS, chosen.trials, 5
    if chosen.quick:
        repeats, steps, skip, grain, trials, listings = 1, 30, 5, 0.001, 3, 1
    measured = sweep(trials, 5, listings)
    contenders = {
        WITHOUT: lambda: run_once(steps, skip, grain, tracked=False),
        WITH: lambda: run_once(steps, skip, grain, tracked=True),
    }
    with cluster(configuration(steps, None, tracked=False)):
        done = interleaved(contenders, repeats)
    record = {
        "environment": records.environment(),
        "steps": steps,
        "skip": skip,
        "repeats": done,
        "sweep": measured,
    }
    keep("tracking", record, page(record), chosen)


if __name__ == "__main__":
    main()
