"""Kills actors of a running job at a given rate; how much useful work is left, and is it right?

    python -m benchmarks.punisher                  # 20 kills, one every 30 s
    python -m benchmarks.punisher --table          # rates of kills by intervals between snapshots
    python -m benchmarks.punisher --nodes --kills 6 --between 40     # nodes instead of actors
    python -m benchmarks.punisher --quick          # tiny, to see that it works

Two blocks and the rule `local` train on made-up data, with a snapshot every so many steps. While
they do, a thread that knows no more than the operating system's list of processes kills actors
(SIGKILL): victims and moments are drawn from a seed, as if at exponential intervals.

The run is as long as its kills take; then as many steps are done without kills. Goodput is new
steps over wall time, as a share of that of the run without kills, which writes the same snapshots:
steps that are done again do not count. It is taken from the start of the kills until their time is
over and the last loss is made up for. The state of all learners in the last snapshot is compared
with that of the run without kills, bit for bit.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster

from benchmarks import records
from benchmarks.deadline import deadline
from benchmarks.punisher_page import page
from benchmarks.punishing import START_SECONDS, punish
from benchmarks.survival import keep, parser
from benchmarks.workloads import Workload, configuration
from blocklocal.clusters import cluster

WORKLOAD = Workload("mlp", 512, 256)
TABLE_SECONDS = 60.0  # of kills, in each run of the table
TABLE_BETWEEN, TABLE_EVERY = (10.0, 20.0, 60.0), (20, 500)
NODES = 4  # of a CPU each: two to spare
NODE: dict[str, Any] = {"num_cpus": 1, "node_ip_address": "127.0.0.2"}
"""On the loopback, by an address that Ray does not take for this machine's name for itself."""
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@contextmanager
def several_nodes() -> Iterator[Callable[[], object]]:
    """A cluster of several nodes on this machine, connected; what starts one more."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    head = {**NODE, "num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(NODES):
            nodes.add_node(**NODE)
        ray.init(address=nodes.address, log_to_driver=False)
        # Not waited for: it is needed when the next one is lost.
        yield lambda: nodes.add_node(wait=False, **NODE)
    finally:
        ray.shutdown()
        nodes.shutdown()


@contextmanager
def machines(several: bool) -> Iterator[Callable[[], object] | None]:
    """A local Ray, or several nodes and what starts one more.

    Raises:
        TimeoutError: when they do not start.
    """
    with ExitStack() as stack:
        with deadline(START_SECONDS, lambda: "starting Ray"):
            one = cluster(configuration(WORKLOAD, 1))
            replace = stack.enter_context(several_nodes() if several else one)
        yield replace


def options(words: Sequence[str] | None) -> argparse.Namespace:
    made = parser(__doc__)
    made.add_argument("--kills", type=int, default=20)
    made.add_argument("--between", type=float, default=30.0, help="mean seconds between kills")
    made.add_argument("--every", type=int, default=100, help="steps between snapshots")
    made.add_argument("--nodes", action="store_true", help="kill nodes instead of actors")
    made.add_argument("--table", action="store_true", help="rates of kills by snapshot intervals")
    chosen = made.parse_args(words)
    if chosen.kills < 1 or chosen.between <= 0 or chosen.every < 1:
        made.error("--kills and --every are at least 1, --between is above 0")
    return chosen


def planned(chosen: argparse.Namespace) -> tuple[dict[float, int], tuple[int, ...]]:
    """How many kills of which mean seconds in between, and all steps between snapshots."""
    if chosen.quick:
        return {2.0: 1}, (chosen.every,)
    if chosen.table:
        return {b: round(TABLE_SECONDS / b) for b in TABLE_BETWEEN}, TABLE_EVERY
    return {chosen.between: chosen.kills}, (chosen.every,)


def main(words: Sequence[str] | None = None) -> None:
    """Measure, and write the results."""
    chosen = options(words)
    workload = WORKLOAD.tiny() if chosen.quick else WORKLOAD
    counts, intervals = planned(chosen)
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    with machines(chosen.nodes) as replace:
        for every in intervals:
            for between, count in counts.items():
                run = punish(
                    workload, chosen.transport, every, count, between, chosen.seed, replace
                )
                told = f"{len(run['kills'])} kills, goodput {run['goodput']:.0%}"
                print(f"every {every} steps, {between:g} s between kills: {told}", flush=True)
                runs.append(run)
    record = {
        "environment": records.environment(),
        "workload": {**asdict(workload), "rule": "local"},
        "transport": chosen.transport,
        "nodes": chosen.nodes,
        "seed": chosen.seed,
        "runs": runs,
    }
    name = "punisher" + ("-nodes" if chosen.nodes else "") + ("-table" if chosen.table else "")
    keep(name, record, page(record), chosen)


if __name__ == "__main__":
    main()
