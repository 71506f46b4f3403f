"""Asking every node of a cluster, and what each says of itself."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blocklocal.doctor.check import Check

SECONDS = 60.0  # a worker starts within it
SHARED_MEMORY = "/dev/shm"
PACKAGES = ("ray", "torch", "numpy", "safetensors")


class Node(NamedTuple):
    """A live node as the cluster knows it; resources in Ray's units, `object_store` in bytes."""

    id: str
    address: str
    resources: dict[str, float]

    @property
    def object_store(self) -> float:
        """Bytes of its object store."""
        return self.resources.get("object_store_memory", 0.0)


class Report(NamedTuple):
    """What a node says of itself.

    Attributes:
        versions: of Python and of packages; None for one that is not there.
        shared_memory: bytes of the file system that object stores lie in; None where there is none.
    """

    versions: dict[str, str | None]
    shared_memory: int | None


def live_nodes() -> list[Node]:
    """The cluster's nodes, in the order of their addresses."""
    found = [
        Node(n["NodeID"], n["NodeManagerAddress"], n["Resources"])
        for n in ray.nodes()
        if n["Alive"]
    ]
    return sorted(found, key=lambda node: (node.address, node.id))


def start(node: Node, function: Any, *arguments: object) -> ray.ObjectRef[Any]:
    """Call a remote function on a node; it reserves no CPU there."""
    there = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return function.options(scheduling_strategy=there, num_cpus=0).remote(*arguments)


def ask(
    nodes: Sequence[Node], function: Any, *arguments: object
) -> Iterator[tuple[Node, Any, str | None]]:
    """Call a remote function on all nodes at once: (node, result, why there is none)."""
    calls = [start(node, function, *arguments) for node in nodes]
    for node, call in zip(nodes, calls, strict=True):
        try:
            yield node, ray.get(call, timeout=SECONDS), None
        except RayError as error:
            yield node, None, reason(error)


def reason(error: RayError) -> str:
    """The last line of a failure: what was raised, without where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def report() -> Report:
    """What this machine says of itself."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in (*PACKAGES, "blocklocal"):
        try:
            # Without the build: a head without GPUs may have PyTorch's for CPUs.
            versions[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    try:
        shared = shutil.disk_usage(SHARED_MEMORY).total
    except FileNotFoundError:
        shared = None
    return Report(versions, shared)


reported = ray.remote(report)


def check_nodes(
    nodes: Sequence[Node], here: Report, told: Callable[[Node, Report], None]
) -> Iterator[Check]:
    """Every node answers and has the versions that this process has; `told` what each said."""
    for node, there, why in ask(nodes, reported):
        name = f"node {node.address}"
        if why is not None:
            fix = "install blocklocal there as cluster.yaml does, or take the node out"
            yield Check(name, False, why, fix)
            continue
        told(node, there)
        yield compare(name, here, there)


def compare(name: str, here: Report, there: Report) -> Check:
    """Whether a node has the versions that this process has."""
    differ = [
        f"{package} {there.versions.get(package) or 'is missing'} (here {version or 'none'})"
        for package, version in here.versions.items()
        if there.versions.get(package) != version
    ]
    if differ:
        fix = "install the same there with pip install -c constraints.txt and restart Ray on it"
        return Check(name, False, ", ".join(differ), fix)
    said = ", ".join(f"{p} {there.versions[p]}" for p in ("python", "ray", "torch"))
    return Check(name, True, said)
