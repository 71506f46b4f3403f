"""Checks of a machine or a cluster before training on it."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import ray
import torch
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from blocklocal.clusters import cluster
from blocklocal.config import make_config

MESSAGE_BYTES = 1 << 24
NODE_SECONDS = 60.0  # a worker starts within it


class Check(NamedTuple):
    """One finding."""

    name: str
    ok: bool
    detail: str


def run(address: str | None) -> Iterator[Check]:
    """Check the packages, the devices, the cluster's resources and one message through it."""
    for package in ("torch", "ray", "numpy", "mlflow", "pyarrow"):
        yield Check(package, True, importlib.metadata.version(package))
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Check("GPUs here", True, ", ".join(gpus) or "none")
    with cluster(make_config({"engine": {"address": address}})):
        yield from _cluster()


def _cluster() -> Iterator[Check]:
    nodes = [n for n in ray.nodes() if n["Alive"]]
    total = ray.cluster_resources()
    yield Check("nodes", bool(nodes), str(len(nodes)))
    for name in ("CPU", "GPU"):
        yield Check(name, name != "CPU" or total.get(name, 0) > 0, f"{total.get(name, 0):g}")
    store = total.get("object_store_memory", 0) / 2**30
    yield Check("object store", store > 0.05, f"{store:.1f} GiB")
    yield from _versions_of(nodes)
    array = np.arange(MESSAGE_BYTES, dtype=np.uint8)
    started = time.perf_counter()
    back = ray.get(_checksum.remote(array))
    rate = MESSAGE_BYTES / (time.perf_counter() - started) / 2**20
    yield Check("message", back == int(array.sum(dtype=np.int64)), f"16 MiB at {rate:.0f} MiB/s")


def _versions_of(nodes: Sequence[dict[str, Any]]) -> Iterator[Check]:
    """Ask every node: actors of one run may be on any of them."""
    here = (torch.__version__, ray.__version__)
    calls = []
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        calls.append(_versions.options(scheduling_strategy=there).remote())
    for node, call in zip(nodes, calls, strict=True):
        name = f"node {node['NodeManagerAddress']}"
        try:
            version = ray.get(call, timeout=NODE_SECONDS)
        except RayError as error:
            yield Check(name, False, str(error).strip().splitlines()[-1])
        else:
            detail = f"torch {version[0]}, ray {version[1]}"
            yield Check(name, version == here, detail)


@ray.remote(num_cpus=0)
def _versions() -> tuple[str, str]:
    return torch.__version__, ray.__version__


@ray.remote(num_cpus=0)
def _checksum(array: np.ndarray) -> int:
    return int(array.sum(dtype=np.int64))
