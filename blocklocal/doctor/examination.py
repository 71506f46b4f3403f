"""All checks, in their order."""

from __future__ import annotations

from collections.abc import Iterator

import ray

from blocklocal.clusters import cluster
from blocklocal.config import RunConfig
from blocklocal.doctor.check import Check
from blocklocal.doctor.clocks import check_clocks
from blocklocal.doctor.devices import check_gpus
from blocklocal.doctor.fit import check_plan
from blocklocal.doctor.here import check_here
from blocklocal.doctor.memory import bytes_under_way, check_store
from blocklocal.doctor.network import MESSAGE_BYTES, check_links
from blocklocal.doctor.nodes import Node, Report, check_nodes, live_nodes, report
from blocklocal.doctor.storage import check_storage
from blocklocal.preparation import prepare
from orchestrator.plan import Plan
from orchestrator.storage import absolute


def examine(
    config: RunConfig, *, run: bool = False, message: int = MESSAGE_BYTES
) -> Iterator[Check]:
    """Check this machine and the configured cluster, or a local one.

    Args:
        run: check also for the run that is configured: its plan, its messages, its storage.
        message: bytes of the messages that measure the network.

    Raises:
        UserError: for a cluster that cannot be reached, or a run that cannot be.
    """
    here = report()
    yield from check_here(here)
    with cluster(config):
        plan = prepare(config).plan if run else None
        yield from _resources()
        if plan is not None:
            yield check_plan(plan, config.lanes.min)
        yield from _nodes(config, here, plan, message)


def _resources() -> Iterator[Check]:
    total = ray.cluster_resources()
    fix = "start nodes with CPUs (min_workers in cluster.yaml)"
    yield Check("CPUs", total.get("CPU", 0) > 0, f"{total.get('CPU', 0):g}", fix)
    yield Check("GPUs", True, f"{total.get('GPU', 0):g}")


def _nodes(config: RunConfig, here: Report, plan: Plan | None, message: int) -> Iterator[Check]:
    answered: list[tuple[Node, Report]] = []
    nodes = live_nodes()
    yield Check("nodes", True, str(len(nodes)))
    yield from check_nodes(nodes, here, lambda node, said: answered.append((node, said)))
    needed = 0 if plan is None else bytes_under_way(plan, config.engine.window, config.lanes.min)
    for node, said in answered:
        yield check_store(node, said, needed)
    there = [node for node, _ in answered]
    yield from check_gpus(there)
    yield from check_clocks(there)
    yield from check_links(there, message)
    storage = absolute(config.checkpoints.storage)
    if storage is not None:
        yield from check_storage(storage, there)
