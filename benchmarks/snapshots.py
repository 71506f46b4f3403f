"""What snapshots cost: steps/s with one every so many steps, as a share of those without.

    python -m benchmarks.snapshots                    # five repeats, a network of 5 M parameters
    python -m benchmarks.snapshots --batches 32 512   # how it depends on the length of a step
    python -m benchmarks.snapshots --quick            # tiny, to see that it works

Two blocks and the rule `local`; SGD with momentum, so that a snapshot holds each parameter twice.
Both contenders write the snapshot of the last step. The clock stops when the driver hears of that
step: it has then written all others, of which the last but one may still be under way.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from benchmarks import records
from benchmarks.deadline import deadline
from benchmarks.measuring import Repeat, Sample, interleaved, quietness, rates, ratios, spread
from benchmarks.survival import WARMUP, Watch, calibrated, keep, parser, trained
from benchmarks.workloads import Workload, configuration
from blocklocal.clusters import cluster
from orchestrator.settings import Transport

WIDTH = 800
"""Eight linear layers of this width, and the head, are 5.1 M parameters."""
EVERY = 20  # steps
LEAST = 0.97
"""At least so large a share is asked."""
WITH, WITHOUT = f"a snapshot every {EVERY} steps", "without"
CALIBRATION_SECONDS = 6.0
START_SECONDS = 90.0  # at most
LEAST_STEPS = 3 * EVERY


def run_once(workload: Workload, steps: int, every: int | None, transport: Transport) -> Sample:
    """Train once; the steps/s, and how many snapshots there were in that time."""
    watch = Watch()
    trained(workload, steps, [watch], every=every, transport=transport)
    # That of the last step is not: the clock stops before.
    taken = (steps - 1) // every - (WARMUP - 1) // every if every else 0
    return {"rate": watch.rate(), "details": {"snapshots": taken}}


def measure(
    workload: Workload, repeats: int, seconds: float, calibration: float, transport: Transport
) -> dict[str, Any]:
    """All repeats of one workload.

    Args:
        seconds: about how long each run is.

    Raises:
        TimeoutError: when a part does not end.
    """
    with deadline(START_SECONDS + 3 * calibration, lambda: "calibrating"):
        rate = calibrated(workload, calibration, every=None, transport=transport)
    steps = WARMUP + max(LEAST_STEPS, EVERY * math.ceil(seconds * rate / EVERY))
    contenders = {
        name: (lambda every=every: run_once(workload, steps, every, transport))
        for name, every in ((WITHOUT, None), (WITH, EVERY))
    }
    # Snapshots of a network whose steps are short may take many times as long as its steps.
    limit = 2 * repeats * (START_SECONDS + 10 * seconds)
    with deadline(limit, lambda: f"training with snapshots and without, {steps} steps each"):
        done = interleaved(contenders, repeats)
    parameters = sum(p.numel() for p in workload.network().parameters())
    return {
        "workload": asdict(workload),
        "parameters": parameters,
        "steps": steps,
        "repeats": done,
    }


def page(record: Mapping[str, Any]) -> str:
    """The Markdown page of a record."""
    cases: list[Mapping[str, Any]] = record["cases"]
    repeats: list[Repeat] = [repeat for case in cases for repeat in case["repeats"]]
    parameters = sorted({case["parameters"] for case in cases})
    lines = [
        "# What snapshots cost",
        "",
        f"Steps/s with a snapshot every {EVERY} steps, written to the disk, as a share of those "
        f"without; a network of {' or '.join(f'{p / 1e6:.1f} M' for p in parameters)} parameters "
        f"in two blocks, SGD with momentum, transport `{record['transport']}`. Medians (lowest to "
        f"highest) of {len(cases[0]['repeats'])} interleaved repeats; shares are of the same "
        "repeat.",
        "",
        "| batch | steps/s without | steps/s with snapshots | share | target | reached |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        done: list[Repeat] = case["repeats"]
        shares = ratios(done, WITH, WITHOUT)
        lines.append(
            f"| {case['workload']['batch']} | {spread(rates(done, WITHOUT), 1)} "
            f"| {spread(rates(done, WITH), 1)} | {spread(shares, 3)} | {LEAST:.2f} "
            f"| {'yes' if statistics.median(shares) >= LEAST else 'no'} |"
        )
    lines += [
        "",
        "Milliseconds by which one snapshot delays training: "
        + ", ".join(f"{spread(delays(c), 0)} at batch {c['workload']['batch']}" for c in cases)
        + ".",
        "",
        quietness(repeats),
        "",
        records.footer(record["environment"]),
    ]
    return "\n".join(lines) + "\n"


def delays(case: Mapping[str, Any]) -> list[float]:
    """Milliseconds that a snapshot adds to a run, by repeat."""
    steps = case["steps"] - WARMUP
    found = []
    for repeat in case["repeats"]:
        fast, slow = repeat["samples"][WITHOUT], repeat["samples"][WITH]
        seconds = steps / slow["rate"] - steps / fast["rate"]
        found.append(1000 * seconds / slow["details"]["snapshots"])
    return found


def options(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=5)
    made.add_argument("--seconds", type=float, default=30.0, help="of each run")
    made.add_argument("--batches", type=int, nargs="+", default=[128])
    return made.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Measure all batches, and write the results."""
    chosen = options(words)
    workloads = [Workload("mlp", WIDTH, batch) for batch in chosen.batches]
    seconds, calibration, repeats = chosen.seconds, CALIBRATION_SECONDS, chosen.repeats
    if chosen.quick:
        workloads, repeats = [workloads[0].tiny()], 1
        seconds, calibration = 1.0, 0.5
    torch.set_num_threads(1)
    with cluster(configuration(workloads[0], 1)):
        cases = [
            measure(workload, repeats, seconds, calibration, chosen.transport)
            for workload in workloads
        ]
    record = {
        "environment": records.environment(),
        "transport": chosen.transport,
        "every": EVERY,
        "cases": cases,
    }
    keep("snapshots", record, page(record), chosen)


if __name__ == "__main__":
    main()
