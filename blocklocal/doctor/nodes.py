"""Asking the nodes of a cluster: one process on each answers as long as the examination lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")
SECONDS = 60.0  # a process starts within it


class Node(NamedTuple):
    """A live node as the cluster knows it, with its resources in Ray's units."""

    id: str
    address: str
    resources: dict[str, float]

    @property
    def object_store(self) -> float:
        """Bytes of its object store."""
        return self.resources.get("object_store_memory", 0.0)

    @property
    def placed(self) -> NodeAffinitySchedulingStrategy:
        """Where work for this node and no other goes."""
        return NodeAffinitySchedulingStrategy(self.id, soft=False)


class _Answering:
    def call(self, function: Callable[..., Any], *arguments: object) -> object:
        return function(*arguments)


class Probe:
    """A process on a node that calls functions there; it reserves nothing."""

    def __init__(self, node: Node) -> None:
        self.node = node
        answering: Any = ray.remote(_Answering)
        self._actor = answering.options(num_cpus=0, scheduling_strategy=node.placed).remote()

    def start(self, function: Callable[..., T], *arguments: object) -> ray.ObjectRef[T]:
        """Have a function called there."""
        return self._actor.call.remote(function, *arguments)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """What a function returns there.

        Raises:
            RayError: when the node does not answer in time, or the function fails.
        """
        return ray.get(self.start(function, *arguments), timeout=SECONDS)

    def end(self) -> None:
        """End the process."""
        ray.kill(self._actor)


class Answer(NamedTuple):
    """What a function returned on a node, or why there is nothing."""

    probe: Probe
    value: Any
    failure: str | None


def live_nodes() -> list[Node]:
    """The cluster's nodes, in the order of their addresses."""
    found = [
        Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"])
        for n in ray.nodes()
        if n["Alive"]
    ]
    return sorted(found, key=lambda node: (node.address, node.id))


@contextmanager
def probes(nodes: Sequence[Node]) -> Iterator[list[Probe]]:
    """A probe on each node."""
    started = [Probe(node) for node in nodes]
    try:
        yield started
    finally:
        for probe in started:
            probe.end()


def ask(asked: Sequence[Probe], function: Callable[..., Any], *arguments: object) -> list[Answer]:
    """Call a function on all nodes at once."""
    calls = [probe.start(function, *arguments) for probe in asked]
    wait_for(calls)
    answers = []
    for probe, call in zip(asked, calls, strict=True):
        try:
            answers.append(Answer(probe, ray.get(call, timeout=0), None))
        except RayError as error:
            answers.append(Answer(probe, None, reason(error)))
    return answers


def wait_for(calls: Sequence[ray.ObjectRef[Any]]) -> None:
    """Wait until calls have ended, `SECONDS` for all of them together: some nodes may be frozen."""
    if calls:
        ray.wait(list(calls), num_returns=len(calls), timeout=SECONDS)


def reason(error: RayError) -> str:
    """The last line of a failure: what was raised, without where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
