"""Memory of the driver and of the object store over a long run with losses: does it grow?

    python -m benchmarks.endurance            # 20,000 steps, a kill every 2,000
    python -m benchmarks.endurance --quick    # a few hundred, to see that it works

Two tiny blocks send everything through Ray's object store, where Ray would put such small messages
into the calls: what is forgotten there would pile up soonest. Each kill is one of an actor by
SIGKILL. A straight line is laid through the samples after the first quarter of the run.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil
import ray
import torch

from actors.operations import Span
from benchmarks import records
from benchmarks.deadline import deadline
from benchmarks.killer import Kill, actors, kill_one
from benchmarks.survival import Watch, keep, parser, trained
from benchmarks.workloads import Workload, configuration
from blocklocal.clusters import cluster
from orchestrator.events import Metrics

WORKLOAD = Workload("mlp", 32, 32, layers=1)
INLINE_BYTES = 1024  # a message of WORKLOAD has four times as many
WARMUP_SHARE = 0.25
FLAT_BYTES = 256.0
"""Growth a step below which memory is called flat: 5 MB in 20,000 steps."""
WATCHED = {
    "driver": "driver, resident",
    "driver_private": "driver, not shared",
    "store": "object store, in use",
    "raylet": "raylet, resident",
    "gcs_server": "GCS, resident",
}
ASKED = ("driver", "store")
DAEMONS = ("raylet", "gcs_server")
MIB = 2**20
STEP_SECONDS, KILL_SECONDS, START_SECONDS = 0.2, 30.0, 90.0  # at most


class Slope(NamedTuple):
    """A straight line through samples.

    Attributes:
        bytes: by which it rises a step.
        error: its standard error, as if samples were independent.
    """

    bytes: float
    error: float


@dataclass
class Sampler(Watch):
    """Looks at memory every so many steps, and kills an actor every so many steps."""

    samples: list[dict[str, float]] = field(default_factory=list)
    kills: list[tuple[int, Kill]] = field(default_factory=list)
    steps: int = 0
    look_every: int = 500
    kill_every: int = 2000
    draw: random.Random = field(default_factory=random.Random)

    def stepped(self, step: int, metrics: Metrics) -> None:
        # Not what `Watch` does: a list of all steps would be measured too.
        done = step + 1
        if done % self.look_every == 0:
            self.samples.append({"step": done, **memory()})
        # Not at the end, where a kill may hit nobody.
        if done % self.kill_every == 0 and done < self.steps:
            kill = kill_one(actors(), self.draw)
            if kill is not None:
                self.kills.append((done, kill))

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        """Times would be measured too."""


def memory() -> dict[str, float]:
    """Bytes by the names of `WATCHED`."""
    me = psutil.Process()
    mine = me.memory_info()
    total, free = ray.cluster_resources(), ray.available_resources()
    name = "object_store_memory"
    found = {
        "driver": float(mine.rss),
        "driver_private": float(mine.rss - getattr(mine, "shared", 0)),  # Linux only
        "store": total[name] - free.get(name, 0.0),
    }
    for child in me.children():
        if child.name() in DAEMONS:
            found[child.name()] = float(child.memory_info().rss)
    return found


def slope(steps: Sequence[float], values: Sequence[float]) -> Slope:
    """The line with the least squares.

    Raises:
        ValueError: with fewer than three samples.
    """
    if len(steps) < 3:
        raise ValueError(f"{len(steps)} samples have no slope with an error: take three")
    x, y = statistics.fmean(steps), statistics.fmean(values)
    spread = sum((s - x) ** 2 for s in steps)
    rise = sum((s - x) * (v - y) for s, v in zip(steps, values, strict=True)) / spread
    left = sum((v - y - rise * (s - x)) ** 2 for s, v in zip(steps, values, strict=True))
    return Slope(rise, math.sqrt(left / (len(steps) - 2) / spread))


def slopes(samples: Sequence[Mapping[str, float]], steps: int) -> dict[str, Slope]:
    """By the names of `WATCHED`, over the samples after the warm-up."""
    late = [sample for sample in samples if sample["step"] > WARMUP_SHARE * steps]
    at = [sample["step"] for sample in late]
    names = [name for name in WATCHED if all(name in sample for sample in late)]
    return {name: slope(at, [sample[name] for sample in late]) for name in names}


def page(record: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    samples, steps = record["samples"], record["steps"]
    found = {name: Slope(**line) for name, line in record["slopes"].items()}
    lines = [
        "# Memory over a long run with losses",
        "",
        f"{steps:,} steps of two tiny blocks, transport `{record['transport']}`, a snapshot every "
        f"{record['every']} steps, {len(record['kills'])} actors killed, one every "
        f"{record['kill_every']:,} steps; {len(record['incidents'])} incidents. Growth: the slope "
        f"of a straight line through the samples after step {WARMUP_SHARE * steps:,.0f}, with its "
        f"standard error. Flat is asked of the driver and of the object store, and means under "
        f"{FLAT_BYTES:g} bytes a step.",
        "",
        "| memory | median, MiB | growth, bytes a step | in all, MiB | flat |",
        "|---|---|---|---|---|",
    ]
    late = [sample for sample in samples if sample["step"] > WARMUP_SHARE * steps]
    for name, line in found.items():
        middle = statistics.median(sample[name] for sample in late) / MIB
        verdict = ("yes" if line.bytes < FLAT_BYTES else "no") if name in ASKED else ""
        lines.append(
            f"| {WATCHED[name]} | {middle:.1f} | {line.bytes:.0f} ± {line.error:.0f} "
            f"| {line.bytes * (1 - WARMUP_SHARE) * steps / MIB:+.1f} | {verdict} |"
        )
    lines += [
        "",
        "MiB by step:",
        "",
        "| step | " + " | ".join(WATCHED[name] for name in found) + " |",
        "|---|" + "---|" * len(found),
    ]
    for sample in samples:
        cells = " | ".join(f"{sample[name] / MIB:.2f}" for name in found)
        lines.append(f"| {sample['step']:,.0f} | {cells} |")
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def options(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.set_defaults(transport="object_store")
    made.add_argument("--steps", type=int, default=20_000)
    made.add_argument("--kill-every", type=int, default=2_000, help="steps")
    made.add_argument("--every", type=int, default=100, help="steps between snapshots")
    made.add_argument("--look-every", type=int, default=500, help="steps between samples")
    chosen = made.parse_args(words)
    if chosen.quick:
        chosen.steps, chosen.kill_every, chosen.look_every = 600, 300, 100
    if chosen.steps * (1 - WARMUP_SHARE) < 3 * chosen.look_every:
        made.error(f"--steps = {chosen.steps} is too few for samples every {chosen.look_every}")
    return chosen


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    chosen = options(words)
    torch.set_num_threads(1)
    # Of Ray's processes and ours, where no cluster is connected yet.
    os.environ.setdefault("RAY_max_direct_call_object_size", str(INLINE_BYTES))
    sampler = Sampler(
        steps=chosen.steps,
        look_every=chosen.look_every,
        kill_every=chosen.kill_every,
        draw=random.Random(chosen.seed),
    )
    kills = chosen.steps // chosen.kill_every
    limit = START_SECONDS + STEP_SECONDS * chosen.steps + KILL_SECONDS * kills
    settings = {"engine.recovery.max_failures": 10 * (kills + 1)}

    def doing() -> str:
        return f"training, {len(sampler.kills)} of {kills} kills, {len(sampler.samples)} samples"

    with cluster(configuration(WORKLOAD, 1)), deadline(limit, doing):
        trained(
            WORKLOAD,
            chosen.steps,
            [sampler],
            every=chosen.every,
            transport=chosen.transport,
            settings=settings,
        )
    found = slopes(sampler.samples, chosen.steps)
    record = {
        "environment": records.environment(),
        "transport": chosen.transport,
        "seed": chosen.seed,
        "steps": chosen.steps,
        "every": chosen.every,
        "kill_every": chosen.kill_every,
        "samples": sampler.samples,
        "slopes": {name: line._asdict() for name, line in found.items()},
        "kills": [{"step": step, **vars(kill)} for step, kill in sampler.kills],
        "incidents": [incident.record() for _, incident in sampler.incidents],
    }
    keep("endurance", record, page(record), chosen)


if __name__ == "__main__":
    main()
