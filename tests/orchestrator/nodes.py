"""A program for tests: trains on a Ray cluster of several nodes, of which some come and go.

    python -m tests.orchestrator.nodes kill bll
    python -m tests.orchestrator.nodes grow local

Prints a line of JSON: incidents and changes, who was where, and where the bits differ from those of
one process. It is a process of its own because a process can be connected to one cluster only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import ray
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import (
    DrainNodeReason,  # pyright: ignore[reportAttributeAccessIssue]
)

import orchestrator.elasticity
import orchestrator.rebalancing
import orchestrator.stream
from actors.operations import Span
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Local, Rule
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import Changed, Event, StepDone
from orchestrator.lane_settings import LaneSettings
from orchestrator.program import Calendar
from orchestrator.rebalancing import Rebalancer
from tests.orchestrator.engines import (
    EVALUATION_BATCH,
    Case,
    Told,
    differences,
    eventually,
    inline_engine,
    told,
)
from tests.orchestrator.incidents import Keeper
from tests.prefork import forked_workers

RULES: dict[str, Rule] = {
    "backprop": Backprop(order="1f1b"),
    "local": Local(),
    "bll": BLL(feedback=FeedbackSettings(delay="auto")),
}
HEALTH = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}
EVERY = 200  # steps between snapshots
STEPS = {"kill": 800, "grow": 1200, "drain": 800, "rebalance": 800}


@dataclass(frozen=True)
class So:
    """What has happened in a run so far."""

    step: int
    changes: int
    snapshots: int
    moving: bool


@dataclass(frozen=True)
class Act:
    """What is done in a run as soon as something has happened."""

    when: Callable[[So], bool]
    do: Callable[[RayEngine], None]


def at(step: int) -> Callable[[So], bool]:
    """As soon as this step is told."""
    return lambda so: so.step >= step


class Scene:
    """A cluster and a run on it.

    Attributes:
        lost: the actors that were on a node when it was killed.
    """

    def __init__(self, rule: str, steps: int, shards: int = 1) -> None:
        # Of three blocks, a node of two CPUs has room for one lane and for no part of another.
        cpus = 0.5 if shards == 1 else 0.6
        self.case = Case(RULES[rule], steps=steps, shards=shards, cpus=cpus)
        self.calendar = Calendar(snapshots=frozenset({*range(EVERY - 1, steps, EVERY)}))
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": HEALTH}
        self.expected = self._alone()
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.nodes: list[Any] = []
        self.lost: list[str] = []

    def _alone(self) -> list[Told]:
        with inline_engine(self.case) as engine:
            return told(engine.train(range(self.case.steps), self.calendar))

    def add_node(self, **settings: Any) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=2, **settings))

    def start(self, lanes: LaneSettings, rebalance: float | None = None) -> RayEngine:
        program, plan, blocks = self.case.build()
        share = {"time_share": 1 / len(plan.blocks)}
        blocks_planned = tuple(block.model_copy(update=share) for block in plan.blocks)
        plan = plan.model_copy(update={"blocks": blocks_planned})
        chain = Chain(
            program,
            plan,
            blocks,
            self.case.data,
            self.case.augment,
            evaluation_batch=EVALUATION_BATCH,
            threads=1,
            window=2,
            transport="direct",
            lanes=lanes.min,
            grows=True,
        )
        return RayEngine(chain, lanes=lanes, rebalance=rebalance)

    def kill(self, engine: RayEngine, node: Any) -> None:
        where = {a.name: a.identity.node for a in engine._chain.actors if a.identity}
        self.lost = [name for name, at in where.items() if at == node.node_id]
        self.cluster.remove_node(node, allow_graceful=False)

    def drain(self, node: Any) -> None:
        client = GcsClient(address=ray.get_runtime_context().gcs_address)
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline = int((time.time() + 600) * 1000)
        accepted, why = client.drain_node(node.node_id, reason, "preempted", deadline)
        assert accepted, why

    def follow(
        self, lanes: LaneSettings, acts: Sequence[Act], rebalance: float | None = None
    ) -> dict[str, Any]:
        """Train, doing one thing after the other when its time has come; what came out of it."""
        keeper, events, acts = Keeper(), list[Event](), deque(acts)
        engine = self.start(lanes, rebalance)
        try:
            for event in engine.train(range(self.case.steps), self.calendar, keeper):
                keeper.keep(event)
                events.append(event)
                if acts and isinstance(event, StepDone):
                    changed = sum(isinstance(e, Changed) for e in events)
                    moving = engine._elasticity._move is not None
                    if acts[0].when(So(event.step, changed, len(keeper.states), moving)):
                        acts.popleft().do(engine)
            assert not acts, f"the run was over before {len(acts)} things could be done"
            where = {a.name: a.identity.node for a in engine._chain.actors if a.identity}
        finally:
            engine.close()
        changes = [e for e in events if isinstance(e, Changed)]
        mine = told(events)
        steps = [e.step for e in mine if e.step % EVERY == EVERY - 1]
        snapshots = set(self.calendar.snapshots)
        assert snapshots <= set(steps)
        # Snapshots besides those of the calendar, taken when a node drains, have no counterpart.
        mine = [e for e in mine if isinstance(e, StepDone) or e.step in snapshots]
        return {
            "incidents": [incident.record() for incident in keeper.incidents],
            "changes": [[c.lanes, c.what] for c in changes],
            "extra": sorted(set(keeper.states) - {s + 1 for s in snapshots}),
            "where": where,
            "nodes": [node.node_id for node in self.nodes],
            "lost": self.lost,
            "differences": differences(mine, self.expected),
        }

    def close(self) -> None:
        ray.shutdown()
        self.cluster.shutdown()


def kill(scene: Scene) -> dict[str, Any]:
    """The node of most blocks is killed, and its blocks go on on the other."""
    scene.add_node()
    scene.add_node()

    def at_450(engine: RayEngine) -> None:
        where = [a.identity.node for a in engine._chain.actors if a.identity]
        scene.kill(engine, max(scene.nodes, key=lambda n: where.count(n.node_id)))

    return scene.follow(LaneSettings(), [Act(at(450), at_450)])


def grow(scene: Scene) -> dict[str, Any]:
    """Lanes 1, 2, 3 as nodes join; the node of one drains, that of another is killed."""
    scene.add_node()

    def joins(engine: RayEngine) -> None:
        scene.add_node()
        elasticity = engine._elasticity

        def ready() -> bool:
            elasticity.look()
            return elasticity._growth is not None and elasticity._growth.is_ready()

        assert eventually(ready)

    def drains(engine: RayEngine) -> None:
        scene.drain(scene.nodes[0])
        first = scene.nodes[0].node_id
        assert eventually(lambda: first in engine._elasticity._drains())

    def killed(engine: RayEngine) -> None:
        scene.kill(engine, scene.nodes[1])

    acts = [
        Act(at(20), joins),
        Act(lambda so: so.changes == 1, joins),
        Act(lambda so: so.changes == 2, drains),
        Act(lambda so: so.changes >= 3 and so.snapshots > 0, killed),
    ]
    return scene.follow(LaneSettings(min=1, max=3), acts)


def drain(scene: Scene) -> dict[str, Any]:
    """The only lane's node drains: its blocks move to another one."""
    scene.add_node()

    def drains(engine: RayEngine) -> None:
        scene.add_node()
        scene.drain(scene.nodes[0])
        elasticity = engine._elasticity

        def ready() -> bool:
            elasticity._looked = float("-inf")
            elasticity.look()
            return elasticity._move is not None and elasticity._move.arrival.is_ready()

        assert eventually(ready)

    return scene.follow(LaneSettings(), [Act(at(300), drains)])


def rebalance(scene: Scene) -> dict[str, Any]:
    """Block 3 moves to the node that is named; then block 2 is slow and moves to the empty one."""
    scene.add_node(node_ip_address="127.0.0.2")

    def named(engine: RayEngine) -> None:
        scene.add_node(node_ip_address="127.0.0.3")
        scene.add_node(node_ip_address="127.0.0.4")
        elasticity = engine._elasticity
        elasticity.ask_to_move(engine._chain.lanes[0], [3], "because of a test", "127.0.0.4")
        move = elasticity._move
        assert move is not None and eventually(move.arrival.is_ready)

    def slow(engine: RayEngine) -> None:
        milliseconds[2] = 100

    def arrives(engine: RayEngine) -> None:
        move = engine._elasticity._move
        assert move is not None and eventually(move.arrival.is_ready)

    milliseconds = {1: 1, 2: 1, 3: 1}
    with _taking(milliseconds):
        acts = [
            Act(at(20), named),
            Act(lambda so: so.changes == 1, slow),
            Act(lambda so: so.moving, arrives),
        ]
        # Twice and a half its share: block 1, which makes the batches, is not slow for that.
        return scene.follow(LaneSettings(), acts, rebalance=1.5)


@contextmanager
def _taking(milliseconds: Mapping[int, int]) -> Iterator[None]:
    """Let the blocks have taken so long for each operation, whatever they took on this machine."""
    note = Rebalancer.note

    def noted(watch: Rebalancer, block: int, spans: Sequence[Span]) -> None:
        took = milliseconds[block] * 10**6
        alike = [s._replace(started=0, ended=took, waited=0, blocked=0) for s in spans]
        note(watch, block, alike)

    with mock.patch.object(Rebalancer, "note", noted):
        yield


SCENES = {"kill": kill, "grow": grow, "drain": drain, "rebalance": rebalance}


def main(what: str, rule: str) -> None:
    # So that there are few steps between what happens and what follows, however busy the machine.
    orchestrator.stream.CHUNK_SECONDS = 0.05
    orchestrator.rebalancing.LEAST_SECONDS = 0.0
    orchestrator.elasticity.ROOM_SECONDS = 1e6  # there is room, which Ray finds when it does
    with TemporaryDirectory() as home, forked_workers(Path(home)):
        scene = Scene(rule, steps=STEPS[what], shards=4 if what in ("grow", "rebalance") else 1)
        try:
            ray.init(address=scene.cluster.address, log_to_driver=False)
            print(json.dumps(SCENES[what](scene)))
        finally:
            scene.close()


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main(*sys.argv[1:])
