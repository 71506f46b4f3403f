"""What blocks reserve, and a refusal when that finds no room in the cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import ray

from learning.errors import UserError
from orchestrator.plan import Plan


def even_cpus(available: float, blocks: int) -> float:
    """CPUs a block when they are shared evenly: at most 1, in hundredths."""
    return max(0.01, min(1.0, int(100 * available / blocks) / 100))


class Asks(Protocol):
    """What a block reserves, such as `BlockPlan` says it."""

    @property
    def index(self) -> int:
        """The block, from 1."""
        ...

    @property
    def cpus(self) -> float:
        """CPUs of its bundle."""
        ...

    @property
    def gpus(self) -> float:
        """Its share of a GPU."""
        ...


def check_fit(plan: Plan, nodes: Sequence[dict[str, float]], lanes: int = 1) -> None:
    """Check that every block's bundle finds room in each lane; see `check_room`."""
    check_room(plan.blocks, nodes, lanes)


def check_room(asked: Sequence[Asks], nodes: Sequence[dict[str, float]], lanes: int = 1) -> None:
    """Check that every block's bundle finds room in each lane, by first fit of the largest.

    A block's share of a GPU lies on one GPU: two with a third free each have no room for a half.

    Args:
        asked: the CPUs and GPUs of each block.
        nodes: free resources of each node, `CPU` and `GPU`.

    Raises:
        UserError: naming what is asked, what there is, and the fix.
    """
    free = [{"CPU": node.get("CPU", 0.0), **_each_gpu(node)} for node in nodes]
    blocks = [block for block in asked for _ in range(lanes)]
    for block in sorted(blocks, key=lambda b: (b.gpus, b.cpus), reverse=True):
        for node in free:
            gpu = next((n for n in node if n != "CPU" and node[n] + 1e-9 >= block.gpus), None)
            if node["CPU"] + 1e-9 >= block.cpus and (gpu is not None or not block.gpus):
                node["CPU"] -= block.cpus
                if gpu is not None:
                    node[gpu] -= block.gpus
                break
        else:
            total = {name: sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
            need = {
                "CPU": sum(b.cpus for b in blocks),
                "GPU": sum(b.gpus for b in blocks),
            }
            what = f"{len(asked)} blocks" + (f" in {lanes} lanes" if lanes > 1 else "")
            fewer = "lower blocks.count, " + ("lanes.min, " if lanes > 1 else "")
            raise UserError(
                f"the plan does not fit the cluster: {what} need "
                f"{need['CPU']:g} CPUs and {need['GPU']:g} GPUs ({block.cpus:g} and "
                f"{block.gpus:g} on one node for block {block.index}), and {len(nodes)} nodes have "
                f"{total['CPU']:g} and {total['GPU']:g} free: {fewer}"
                "engine.resources.cpus or engine.resources.gpus, or add nodes"
            )


def _each_gpu(node: dict[str, float]) -> dict[str, float]:
    """A node's free GPUs one by one: whole ones, then what is left of one.

    Ray tells their sum. Where others have taken parts of several, this sees more room than there
    is, and the reservation decides.
    """
    total = node.get("GPU", 0.0)
    whole = int(total + 1e-9)
    left = max(0.0, total - whole)
    return {f"GPU {i}": 1.0 for i in range(whole)} | {f"GPU {whole}": left}


def free_resources() -> list[dict[str, float]]:
    """Free CPUs and GPUs of each live node, as far as they are known: totals, minus what is taken.

    Ray's public interface gives free amounts for the cluster only; on one node that is exact, and
    on several the reservation itself decides what the totals let through.
    """
    nodes = [dict(n["Resources"]) for n in ray.nodes() if n["Alive"]]
    return [dict(ray.available_resources())] if len(nodes) == 1 else nodes
