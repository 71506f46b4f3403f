"""Kills actors of a running job at a given rate; how much useful work is left, and is it right?

    python -m benchmarks.punisher --minutes 10 --between 30

Two blocks and the rule `local` train on made-up data, with a checkpoint every so many steps. While
they do, a thread that knows no more than the operating system's list of processes kills one of the
actors (SIGKILL), at times and on victims that are drawn from a seed: exponential times between
kills, of the given mean.

Goodput is steps over wall time, as a share of that of the same run without kills and with the same
checkpoints, which runs just before: steps that are done again do not count. The weights at the end
are compared with that run's, bit for bit.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from actors.operations import Span
from benchmarks import records
from benchmarks.workloads import Workload, configuration, prepared
from blocklocal.clusters import cluster
from blocklocal.config import make_config
from blocklocal.training import train
from orchestrator.chain import Transport
from orchestrator.events import Metrics
from orchestrator.incidents import Incident

TARGET = 0.80
PHASES = ("noticing", "ending", "starting", "restoring", "replaying")
WARMUP = 20  # steps


@dataclass
class Watch:
    """An observer: when each step was done, and all incidents."""

    times: list[float] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)

    def stepped(self, step: int, metrics: Metrics) -> None:
        self.times.append(time.monotonic())

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        """Only times are watched."""

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        """Only times are watched."""

    def recovered(self, incident: Incident) -> None:
        self.incidents.append(incident)

    def rate(self) -> float:
        """Steps a second after the warm-up."""
        return (len(self.times) - WARMUP) / (self.times[-1] - self.times[WARMUP - 1])


class Punisher(threading.Thread):
    """Kills actors below this process until it is stopped.

    Attributes:
        kills: (seconds since the start, name of the process, its number).
    """

    def __init__(self, between: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._random, self._between = random.Random(seed), between
        self._over = threading.Event()
        self.kills: list[tuple[float, str, int]] = []

    def run(self) -> None:
        """Wait, choose, kill."""
        began = time.monotonic()
        while not self._over.wait(self._random.expovariate(1 / self._between)):
            victims = actors()
            if not victims:
                continue  # they are being replaced at this moment
            victim = self._random.choice(victims)
            self.kills.append((time.monotonic() - began, victim.name(), victim.pid))
            victim.kill()

    def stop(self) -> None:
        """Kill nobody from now on."""
        self._over.set()
        self.join()


def actors() -> list[psutil.Process]:
    """The processes of actors below this one, in the order of their numbers."""
    children = psutil.Process().children(recursive=True)
    return sorted((c for c in children if c.name().startswith("ray::_")), key=lambda c: c.pid)


def run(
    workload: Workload, steps: int, every: int, transport: Transport, punisher: Punisher | None
) -> tuple[Watch, dict[str, Tensor]]:
    """Train, on the cluster that is connected; what was watched, and the weights at the end."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as directory:
        config = configuration(workload, steps, transport=transport)
        changes: dict[str, Any] = {
            "run": {"directory": f"{directory}/run"},
            "training": {"evaluate_every": steps},
            "checkpoints": {"every": every},
            "engine": {"recovery": {"max_failures": 10_000}},
        }
        tree = config.model_dump(mode="json")
        config = make_config({**tree, **{n: {**tree[n], **c} for n, c in changes.items()}})
        ready = prepared(workload, config)
        if punisher is not None:
            punisher.start()
        try:
            result = train(ready, [watch])
        finally:
            if punisher is not None:
                punisher.stop()
        return watch, {n: t.clone() for n, t in result.model.state_dict().items()}


def punish(
    workload: Workload, minutes: float, every: int, between: float, transport: Transport, seed: int
) -> dict[str, Any]:
    """One pair of runs, without kills and with them.

    Args:
        minutes: of the run without kills.
        every: steps between checkpoints.
        between: mean seconds between kills.
    """
    rate = run(workload, 3 * WARMUP, every, transport, None)[0].rate()
    steps = max(3 * WARMUP, round(60 * minutes * rate))
    alone, expected = run(workload, steps, every, transport, None)
    punisher = Punisher(between, seed)
    watch, found = run(workload, steps, every, transport, punisher)
    return {
        "minutes": minutes,
        "every": every,
        "between": between,
        "transport": transport,
        "seed": seed,
        "steps": steps,
        "undisturbed_rate": alone.rate(),
        "rate": watch.rate(),
        "goodput": watch.rate() / alone.rate(),
        "same_bits": all(torch.equal(expected[name], found[name]) for name in expected),
        "kills": punisher.kills,
        "incidents": [incident.record() for incident in watch.incidents],
    }


def page(record: dict[str, Any]) -> str:
    """The Markdown page of a record."""
    lines = [
        "# Goodput under kills",
        "",
        "Two blocks of the `mlp-30ms` workload, rule `local`; one actor is killed at a time, at "
        "exponential intervals. Goodput: steps a second as a share of the same run without kills "
        f"(target: {TARGET:.0%} at one kill every 30 s).",
        "",
        "| transport | mean s between kills | steps between checkpoints | steps | kills "
        "| incidents | steps done again | steps/s without kills | steps/s | goodput | same bits |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in record["runs"]:
        again = sum(incident["steps_lost"] for incident in r["incidents"])
        lines.append(
            f"| {r['transport']} | {r['between']:g} | {r['every']} | {r['steps']} "
            f"| {len(r['kills'])} | {len(r['incidents'])} | {again} | {r['undisturbed_rate']:.1f} "
            f"| {r['rate']:.1f} | {r['goodput']:.0%} | {'yes' if r['same_bits'] else 'NO'} |"
        )
    incidents = [i["seconds"] for r in record["runs"] for i in r["incidents"]]
    if incidents:
        lines += [
            "",
            f"Seconds of an incident by phase, medians of {len(incidents)} (lowest to highest); "
            "`noticing` is the time since the last report of any actor:",
            "",
            "| phase | seconds |",
            "|---|---|",
        ]
        for phase in PHASES:
            lines.append(f"| {phase} | {_cell([i[phase] for i in incidents if phase in i])} |")
        lines.append(f"| **all** | **{_cell([sum(i.values()) for i in incidents])}** |")
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main(words: Sequence[str] | None = None) -> None:
    """Measure all pairs of rates and intervals, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2.0, help="of each run without kills")
    parser.add_argument("--between", type=float, nargs="+", default=[30.0], help="mean seconds")
    parser.add_argument("--every", type=int, nargs="+", default=[20], help="steps")
    parser.add_argument("--transport", default="direct", choices=["direct", "object_store"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="directory")
    arguments = parser.parse_args(words)
    workload = Workload("mlp", 1024, 128)
    workload = workload.tiny() if arguments.tiny else workload
    torch.set_num_threads(1)
    runs = []
    with cluster(configuration(workload, 1)):
        for between in arguments.between:
            for every in arguments.every:
                done = punish(
                    workload,
                    arguments.minutes,
                    every,
                    between,
                    arguments.transport,
                    arguments.seed,
                )
                print(f"every {every}, between {between:g} s: goodput {done['goodput']:.0%}")
                runs.append(done)
    record = {"environment": records.environment(), "runs": runs}
    records.write("punisher", record, page(record), arguments.results)


if __name__ == "__main__":
    main()
