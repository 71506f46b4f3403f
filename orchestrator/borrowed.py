"""Room that someone else has reserved: the placement group of a trial, in which a run happens.

Tune reserves a trial's bundles and gives them back. A run inside it asks for nothing: what it would
ask for comes on top, and an actor more than there are bundles would wait forever.
"""

from __future__ import annotations

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group_table,
)

from learning.errors import UserError
from orchestrator.placement_groups import Placement
from orchestrator.plan import Plan


def own_node() -> str | None:
    """The address of this process's node, in a cluster of several; None: there is no other."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    mine = ray.get_runtime_context().get_node_id()
    address = next((n["NodeManagerAddress"] for n in alive if n["NodeID"] == mine), None)
    return address if len(alive) > 1 else None


def surrounding_group() -> PlacementGroup | None:
    """The placement group that this process runs in, if any."""
    return get_current_placement_group()


class Borrowed(Placement):
    """The bundles of one lane in a group; a block's bundle is that of its own number.

    The last bundles of the group are those of the blocks, lane by lane. Bundles before them are
    whoever's who made the group.
    """

    def __init__(self, plan: Plan, group: PlacementGroup, first: int) -> None:
        """Take bundles of a group, which are there already.

        Args:
            first: index of the first block's bundle.
        """
        self._plan, self._group, self._first = plan, group, first
        self._groups = {block.index: group for block in plan.blocks}
        self._pinned = set()

    @classmethod
    def all_lanes(cls, plan: Plan, group: PlacementGroup, lanes: int) -> list[Borrowed]:
        """The room of each lane.

        Raises:
            UserError: when the group has too few bundles, or one that is too small.
        """
        bundles, needed = group.bundle_specs, lanes * len(plan.blocks)
        start = len(bundles) - needed
        fix = "reserve a bundle for each block of each lane, or lower blocks.count"
        if start < 0:
            raise UserError(
                f"the placement group that this runs in has {len(bundles)} bundles and the plan "
                f"needs {needed}: {fix}"
            )
        for at, block in enumerate(plan.blocks * lanes, start=start):
            cpus, gpus = bundles[at].get("CPU", 0.0), bundles[at].get("GPU", 0.0)
            if cpus + 1e-9 < block.cpus or gpus + 1e-9 < block.gpus:
                raise UserError(
                    f"bundle {at} of the placement group that this runs in has {cpus:g} CPUs and "
                    f"{gpus:g} GPUs, and block {block.index} needs {block.cpus:g} and "
                    f"{block.gpus:g}: {fix}"
                )
        return [cls(plan, group, start + lane * len(plan.blocks)) for lane in range(lanes)]

    def _bundle(self, block: int) -> int:
        return self._first + block - 1

    def is_there(self, block: int) -> bool:
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        where = placement_group_table(self._group)
        return (
            where["state"] == "CREATED"
            and where["bundles_to_node_id"].get(self._bundle(block)) in alive
        )

    def release(self) -> None:
        """Nothing: who made the group gives it back."""

    def wait_counted(self) -> None:
        """Nothing: the bundles are taken already."""

    def wait_given_back(self) -> None:
        """Nothing: the bundles stay."""
