"""Does the simulator predict what the Ray engine does on this machine?

    python -m benchmarks.simulation

The machine is described once, by `benchmarks/simulation_calibration.py`, from runs that are none of
those predicted here. Then in each repeat each configuration's operations are measured in this
process (`orchestrator/costs.py`), its steps/s predicted from them, and the same configuration run
with the Ray engine: one after the other, so that a slow minute of the machine is in both. The error
is that of the median prediction against the median rate. Some configurations run twice: block 1
makes the batches, or an actor of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import records
from benchmarks.measuring import spread, system_load
from benchmarks.simulation_calibration import calibrate
from benchmarks.simulation_runs import rate, run
from benchmarks.workloads import Workload, configuration, prepared
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import measure_costs
from orchestrator.settings import SourcePlace
from orchestrator.simulation import simulate

RULES: dict[str, tuple[dict[str, Any], int]] = {
    "local": ({"kind": "local"}, 1),
    "pairwise": ({"kind": "interlocking", "reach": 2}, 1),
    "bll": ({"kind": "bll"}, 1),
    "backprop, 1f1b, 4 shards": ({"kind": "backprop", "order": "1f1b"}, 4),
    "backprop, gpipe, 4 shards": ({"kind": "backprop", "order": "gpipe"}, 4),
}
SIZES = {"512 wide, batch 64": (512, 64), "1024 wide, batch 128": (1024, 128)}
MAKERS: dict[SourcePlace, str] = {"block1": "batches by block 1", "actor": "batches by an actor"}
LIMIT = 0.10
"""The error that is asked for."""


@dataclass(frozen=True)
class Case:
    """One configuration: a rule on a network, and who makes its batches."""

    rule: str
    size: str
    blocks: int
    source: SourcePlace = "block1"

    @property
    def name(self) -> str:
        return f"{self.rule}, K = {self.blocks}, {self.size}, {MAKERS[self.source]}"

    def workload(self, tiny: bool) -> Workload:
        width, batch = SIZES[self.size]
        # Four layers in all blocks together where that goes: more blocks, less work in each.
        work = Workload(
            "mlp", width, batch, layers=4 if self.blocks == 2 else 2, blocks=self.blocks
        )
        return work.tiny() if tiny else work

    def config(self, workload: Workload, steps: int) -> RunConfig:
        rule, shards = RULES[self.rule]
        config = configuration(workload, steps, shards=shards, source=self.source)
        return make_config({**config.model_dump(mode="json"), "rule": rule})


CASES = [
    Case("local", "512 wide, batch 64", 2),
    Case("local", "512 wide, batch 64", 2, "actor"),
    Case("local", "1024 wide, batch 128", 2),
    Case("local", "1024 wide, batch 128", 3),
    Case("local", "1024 wide, batch 128", 4),
    Case("pairwise", "1024 wide, batch 128", 3),
    Case("bll", "1024 wide, batch 128", 2),
    Case("bll", "512 wide, batch 64", 2),
    Case("bll", "512 wide, batch 64", 3),
    Case("backprop, 1f1b, 4 shards", "1024 wide, batch 128", 2),
    Case("backprop, 1f1b, 4 shards", "1024 wide, batch 128", 2, "actor"),
    Case("backprop, gpipe, 4 shards", "512 wide, batch 64", 2),
]


def one(case: Case, machine: ClusterDescription, steps: int, tiny: bool) -> dict[str, float]:
    """Predict and measure one configuration once, in steps/s."""
    warmup = max(3, steps // 5)
    workload = case.workload(tiny)
    config = case.config(workload, warmup + steps)
    ready = prepared(workload, config)
    blocks = ready.plan.units_of_blocks(ready.units)
    costs = measure_costs(ready.program, blocks, ready.batches, threads=ready.threads, repeats=15)
    # All cores of the machine are shared: the highest device says that the run has them all.
    devices = [machine.devices - 1] * case.blocks
    predicted = simulate(
        ready.program,
        costs,
        machine,
        devices,
        source=ready.source,
        window=config.engine.window,
    )
    return {
        "predicted": predicted.steps_per_second,
        "measured": rate(run(ready), case.blocks, warmup),
    }


def error(samples: Mapping[str, list[float]]) -> float:
    """Of the median prediction, relative to the median measurement."""
    return statistics.median(samples["predicted"]) / statistics.median(samples["measured"]) - 1


def page(record: dict[str, Any]) -> str:
    errors = [error(samples) for samples in record["samples"].values()]
    within = sum(abs(e) <= LIMIT for e in errors)
    lines = [
        "# Simulated and measured steps/s",
        "",
        f"{within} of {len(errors)} configurations are predicted within {LIMIT:.0%}; the median "
        f"error is {statistics.median(map(abs, errors)):.0%}, the largest "
        f"{max(map(abs, errors)):.0%}. Medians (lowest to highest) of {record['repeats']} repeats "
        f"of {record['steps']} steps. Costs are measured anew in each repeat; the machine is "
        "described once, by runs that are none of these.",
        "",
        "| configuration | measured, steps/s | predicted, steps/s | error |",
        "|---|---|---|---|",
    ]
    for name, samples in record["samples"].items():
        lines.append(
            f"| {name} | {spread(samples['measured'], 1)} | {spread(samples['predicted'], 1)} "
            f"| {error(samples):+.0%} |"
        )
    lines += ["", _described(record["machine"]), ""]
    lines += [f"Cores busy with other work before a repeat: {spread(record['busy_cores'])}."]
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def _described(machine: dict[str, Any]) -> str:
    message = machine["message"]
    return (
        f"The machine: {machine['devices']} cores at {machine['speed']:.2f} times the pace at "
        f"which costs were measured, each {machine['contention']:.0%} slower when all are busy and "
        f"{machine['crowding']:.0%} more when each has two threads; {1e3 * message['send']:.2f} ms "
        f"and {1e9 * message['send_per_byte']:.2f} ms a MB to send a message, "
        f"{1e3 * message['receive']:.2f} ms and {1e9 * message['receive_per_byte']:.2f} ms a MB "
        f"until it is there, {1e3 * message['daemons']:.2f} ms of CPU of other threads and "
        f"processes beside it, {1e3 * machine['within']['latency']:.1f} ms in which it waits; "
        f"{1e6 * machine['overhead']:.0f} µs between operations; daemons use "
        f"{machine['background']:.2f} cores when nothing happens."
    )


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--tiny", action="store_true", help="small networks, to see that it runs")
    parser.add_argument("--directory", type=Path, default=records.RESULTS)
    parser.add_argument("--cases", type=int, default=len(CASES), help="only the first so many")
    arguments = parser.parse_args(words)
    cases = CASES[: arguments.cases]
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    cores = os.cpu_count() or 1
    samples: dict[str, dict[str, list[float]]] = {
        case.name: {"predicted": [], "measured": []} for case in cases
    }
    busy: list[float] = []
    first = CASES[0]
    with cluster(first.config(first.workload(arguments.tiny), 1)):
        repeats = 1 if arguments.tiny else 5
        machine = calibrate(cores, repeats=repeats, steps=arguments.steps, tiny=arguments.tiny)
        print(machine.model_dump_json(), flush=True)
        for repeat in range(arguments.repeats):
            busy.append(system_load()[0])
            # Each starts once early and once late, as far as there are repeats.
            start = repeat * len(cases) // arguments.repeats
            for case in [*cases[start:], *cases[:start]]:
                found = one(case, machine, arguments.steps, arguments.tiny)
                for name, value in found.items():
                    samples[case.name][name].append(value)
                print(f"{case.name}: {found}", flush=True)
    record = {
        "environment": records.environment(),
        "repeats": arguments.repeats,
        "steps": arguments.steps,
        "machine": json.loads(machine.model_dump_json()),  # an infinite bandwidth is null
        "busy_cores": busy,
        "samples": samples,
    }
    text = page(record)
    records.write("simulation", record, text, arguments.directory)
    print(text)


if __name__ == "__main__":
    main()
