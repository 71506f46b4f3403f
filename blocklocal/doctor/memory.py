"""The object store of each node: messages wait there until they are taken."""

from __future__ import annotations

from blocklocal.doctor.check import Check
from blocklocal.doctor.nodes import Node
from blocklocal.doctor.versions import Report
from orchestrator.plan import Plan

LEAST_BYTES = 100 * 2**20
MEBI = 2**20


def bytes_under_way(plan: Plan, window: int, lanes: int) -> int:
    """Bytes of forward messages that wait at most, if all blocks are on one node."""
    return sum(block.boundary_bytes for block in plan.blocks[:-1]) * window * lanes


def check_store(node: Node, said: Report, needed: int = 0) -> Check:
    """Whether a node's object store is in memory and has room.

    Args:
        needed: bytes that a run may have under way.
    """
    name, store = f"object store {node.address}", node.object_store
    detail = f"{store / MEBI:,.0f} MiB"
    shared = said.shared_memory
    if shared is not None and shared < store:
        fix = "give it more (docker run --shm-size, a medium: Memory volume), or Ray less of it"
        return Check(name, False, f"{detail}, and only {shared / MEBI:,.0f} MiB in /dev/shm", fix)
    least = max(LEAST_BYTES, needed)
    if store < least:
        fix = "start Ray there with more --object-store-memory, or lower engine.window"
        return Check(name, False, f"{detail} of the {least / MEBI:,.0f} MiB needed", fix)
    return Check(name, True, detail)
