"""All checks, in their order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig
from blocklocal.doctor.check import Check
from blocklocal.doctor.clocks import check_clocks
from blocklocal.doctor.devices import check_gpus
from blocklocal.doctor.fit import check_plan
from blocklocal.doctor.here import check_here
from blocklocal.doctor.memory import bytes_under_way, check_store
from blocklocal.doctor.network import MESSAGE_BYTES, check_links
from blocklocal.doctor.nodes import Probe, ask, live_nodes, probes
from blocklocal.doctor.storage import check_storage
from blocklocal.doctor.versions import Report, compare, report, unanswered
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
    nodes = live_nodes()
    yield Check("nodes", True, str(len(nodes)))
    with probes(nodes) as asked:
        answers = ask(asked, report)
        for answer in answers:
            name = f"node {answer.probe.node.address}"
            if answer.failure is not None:
                yield unanswered(name, answer.failure)
            else:
                yield compare(name, here, answer.value)
        there = [answer for answer in answers if answer.failure is None]
        yield from _machines(config, [(a.probe, a.value) for a in there], plan, message)


def _machines(
    config: RunConfig, there: Sequence[tuple[Probe, Report]], plan: Plan | None, message: int
) -> Iterator[Check]:
    """Check the nodes that answered, and what is between them."""
    needed = 0 if plan is None else bytes_under_way(plan, config.engine.window, config.lanes.min)
    for probe, said in there:
        yield check_store(probe.node, said, needed)
    asked = [probe for probe, _ in there]
    yield from check_gpus([probe.node for probe in asked])
    yield from check_clocks(asked)
    yield from check_links(asked, message)
    storage = absolute(config.checkpoints.storage)
    if storage is not None:
        yield from check_storage(storage, asked)
