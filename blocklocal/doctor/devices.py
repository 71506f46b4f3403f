"""Whether PyTorch sees the GPUs that Ray counts: a driver may be missing, or too old."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import ray
import torch
from ray.exceptions import GetTimeoutError, RayError

from blocklocal.doctor.check import Check
from blocklocal.doctor.nodes import Node, reason, wait_for
from orchestrator.settings import LEAST_GPUS


@ray.remote(num_cpus=0, num_gpus=LEAST_GPUS)
def seen() -> str | None:
    """The GPU that this task was given, as PyTorch sees it."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def check_gpus(nodes: Sequence[Node]) -> Iterator[Check]:
    """Look at a GPU of each node that has some; one whose GPUs are all taken is left alone."""
    having = [node for node in nodes if node.resources.get("GPU", 0) > 0]
    calls = [seen.options(scheduling_strategy=node.placed).remote() for node in having]
    wait_for(calls)
    for node, call in zip(having, calls, strict=True):
        name, count = f"GPU {node.address}", node.resources["GPU"]
        try:
            found = ray.get(call, timeout=0)
        except GetTimeoutError:
            ray.cancel(call)
            yield Check(name, True, "not looked at: others use all of it")
        except RayError as error:
            yield Check(name, False, reason(error), "see that node's line")
        else:
            yield judge(name, count, found)


def judge(name: str, count: float, found: str | None) -> Check:
    """Compare what Ray counts on a node with what PyTorch sees there."""
    if found is not None:
        return Check(name, True, f"{found}, {count:g} of it" if count > 1 else found)
    fix = "install an NVIDIA driver for that PyTorch, or start Ray there with --num-gpus=0"
    return Check(name, False, f"Ray counts {count:g} and PyTorch sees none", fix)
