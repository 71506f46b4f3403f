"""Where actors are: one placement group a block, in which its actors take their shares."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from learning.errors import UserError
from orchestrator.plan import Plan

logger = logging.getLogger(__name__)

CREATION_SECONDS = 60.0
COUNTING_SECONDS = 10.0


class Placement:
    """The placement groups of blocks of a plan, and the options that put an actor into one.

    Asking for groups is also how Ray's autoscaler learns what is wanted: it adds nodes for those
    that find no room, and takes nodes away that have none.
    """

    def __init__(
        self, plan: Plan, blocks: Sequence[int] | None = None, node: str | None = None
    ) -> None:
        """Ask for the groups, and wait for nothing.

        Args:
            blocks: of which blocks; None for all.
            node: address of the node that they must be on; None for any.
        """
        self._plan = plan
        asked = [b.index for b in plan.blocks if blocks is None or b.index in blocks]
        self._groups = {block: self._ask(block, node) for block in asked}
        self._pinned = set(asked) if node else set[int]()

    def _ask(self, block: int, node: str | None = None) -> PlacementGroup:
        plan = self._plan.blocks[block - 1]
        gpus = {"GPU": plan.gpus} if plan.gpus else {}
        there = {f"node:{node}": 0.001} if node else {}  # every node has 1 of its own
        # Without a name: Ray wants names to be unique, and a cluster may have several runs.
        return placement_group([{"CPU": plan.cpus, **gpus, **there}])

    @classmethod
    def now(cls, plan: Plan) -> Placement:
        """Groups for all blocks on what is free in the cluster; `wait_counted` is left to do.

        Raises:
            UserError: when they do not find room in time.
        """
        placement = cls(plan)
        try:
            placement._wait_created()
        except BaseException:
            placement.remove()
            raise
        return placement

    def _wait_created(self) -> None:
        deadline = time.monotonic() + CREATION_SECONDS
        for index, group in self._groups.items():
            if not group.wait(max(0.0, deadline - time.monotonic())):
                raise UserError(
                    f"the cluster gave no room to block {index} within {CREATION_SECONDS:g} s, "
                    "although enough was free: end other work on it and try again"
                )

    def options(self, block: int, *, share: float) -> dict[str, object]:
        """Ray options of an actor in block `block`'s bundle that takes `share` of it."""
        plan = self._plan.blocks[block - 1]
        return {
            "num_cpus": _rounded_down(plan.cpus * share),
            "num_gpus": _rounded_down(plan.gpus * share),
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self._groups[block], self._bundle(block)
            ),
        }

    def _bundle(self, block: int) -> int:
        """The index of a block's bundle in its group."""
        return 0

    @property
    def blocks(self) -> list[int]:
        """Whose groups these are."""
        return list(self._groups)

    def is_there(self, block: int) -> bool:
        """Whether a block's bundle is on a live node."""
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        where = placement_group_table(self._groups[block])
        return where["state"] == "CREATED" and set(where["bundles_to_node_id"].values()) <= alive

    def wait(self, block: int, deadline: float) -> None:
        """Wait until a block's bundle is on a live node, after it may have lost its own.

        Args:
            deadline: at most until then, by `time.monotonic`.

        Raises:
            TimeoutError: when it is on none in time.
        """
        if block in self._pinned and not self.is_there(block):
            # The node that it was wanted on has gone: any other will do.
            remove_placement_group(self._groups[block])
            self._groups[block] = self._ask(block)
            self._pinned.discard(block)
        while not self.is_there(block):
            if time.monotonic() > deadline:
                raise TimeoutError
            time.sleep(0.05)  # Ray has no event for this

    def exchange(self, other: Placement) -> None:
        """Take the groups of another for its blocks, and give it those that they had here."""
        for block, group in other._groups.items():
            other._groups[block], self._groups[block] = self._groups[block], group
        mine, others = set(other._groups) & self._pinned, other._pinned
        self._pinned, other._pinned = self._pinned - mine | others, mine

    def release(self) -> None:
        """Give the resources back, and do not wait until that is counted."""
        for group in self._groups.values():
            remove_placement_group(group)

    def remove(self) -> None:
        """Give the resources back; actors in the groups end."""
        self.release()
        self.wait_given_back()

    def wait_counted(self) -> None:
        """Wait until the groups, which are there, are counted as taken."""
        self._wait_counted(True)

    def wait_given_back(self) -> None:
        """Wait until what was released is counted as free."""
        self._wait_counted(False)

    def _wait_counted(self, there: bool) -> None:
        """Wait until the free resources of the cluster are counted with these groups, or without.

        They are counted with a delay, and whoever plans the next run must see what is free.
        """
        groups = [group.id.hex() for group in self._groups.values()]
        deadline = time.monotonic() + COUNTING_SECONDS
        while time.monotonic() < deadline:
            names = list(ray.available_resources())
            if all(any(n.endswith(group) for n in names) == there for group in groups):
                return
            time.sleep(0.02)  # Ray has no event for this
        logger.warning(
            "the cluster's free resources are still counted %s this run's placement groups after "
            "%g s: the next run may be told that its plan does not fit, so try it again",
            "without" if there else "with",
            COUNTING_SECONDS,
        )


def _rounded_down(amount: float) -> float:
    """To the ten-thousandths that Ray counts in, and never above what the bundle has."""
    return math.floor(amount * 10_000 + 1e-6) / 10_000
