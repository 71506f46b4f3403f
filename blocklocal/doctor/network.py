"""How fast messages go from node to node, in a ring, by the way that training's messages go.

    node 1 ──▶ node 2 ──▶ ... ──▶ node N ──▶ node 1

One link at a time. A single node sends to itself: shared memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError

from blocklocal.doctor.check import Check
from blocklocal.doctor.nodes import SECONDS, Probe, reason

MEBI = 2**20
MESSAGE_BYTES = 16 * MEBI
LEAST_MEBI_PER_SECOND = 10.0  # about a 100 Mbit/s network
ROUNDS = 3


def put(size: int) -> list[ray.ObjectRef[Any]]:
    """Put a message into this node's object store; Ray must not take it along by itself."""
    return [ray.put(np.arange(size, dtype=np.uint8))]


def take(message: list[ray.ObjectRef[Any]]) -> tuple[float, int]:
    """Fetch a message: seconds, and its last byte."""
    started = time.perf_counter()
    array = ray.get(message[0], timeout=SECONDS)
    return time.perf_counter() - started, int(array[-1])


def check_links(probes: Sequence[Probe], size: int = MESSAGE_BYTES) -> Iterator[Check]:
    """Send messages of `size` bytes around the ring of nodes."""
    for sender, receiver in zip(probes, [*probes[1:], *probes[:1]], strict=True):
        name = f"link {sender.node.address} to {receiver.node.address}"
        if sender is receiver:
            name = f"link within {sender.node.address}"
        try:
            seconds = min(_send(sender, receiver, size) for _ in range(ROUNDS))
        except RayError as error:
            fix = "let the nodes reach each other on all ports (docs/clusters.md)"
            yield Check(name, False, reason(error), fix)
            continue
        yield judge(name, size, seconds)


def judge(name: str, size: int, seconds: float) -> Check:
    """Whether a link is fast enough to be a network between machines that train together."""
    rate = size / MEBI / seconds
    detail = f"{rate:,.0f} MiB/s, messages of {size / MEBI:g} MiB"
    fix = (
        f"below {LEAST_MEBI_PER_SECOND:g} MiB/s messages take longer than steps: put the nodes "
        "into one network and zone"
    )
    return Check(name, rate >= LEAST_MEBI_PER_SECOND, detail, fix)


def _send(sender: Probe, receiver: Probe, size: int) -> float:
    seconds, last = receiver.call(take, sender.call(put, size))
    assert last == (size - 1) % 256, "a message arrived as another"
    return seconds
