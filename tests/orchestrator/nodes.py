"""A program for tests: trains on a Ray cluster of several nodes of which one is killed.

    python -m tests.orchestrator.nodes RULE

Prints a line of JSON: the incidents, and where the bits differ from those of one process. It is a
process of its own because a process can be connected to one cluster only.
"""

from __future__ import annotations

import json
import os
import sys

import ray
from ray.cluster_utils import Cluster

from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Local, Rule
from orchestrator.events import Event, StepDone
from orchestrator.program import Calendar
from tests.orchestrator.engines import Case, differences, inline_engine, ray_engine, told
from tests.orchestrator.incidents import Keeper

STEPS, EVERY, KILL_AFTER = 1200, 200, 450
RULES: dict[str, Rule] = {
    "backprop": Backprop(),
    "local": Local(),
    "bll": BLL(feedback=FeedbackSettings(delay="auto")),
}
HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
CALENDAR = Calendar(snapshots=frozenset({*range(EVERY - 1, STEPS, EVERY)}))


def main(rule: str) -> None:
    case = Case(RULES[rule], steps=STEPS)
    with inline_engine(case) as engine:
        expected = told(engine.train(range(STEPS), CALENDAR))
    head = {
        "num_cpus": 0,
        "include_dashboard": False,
        "_system_config": {**HEALTH, "health_check_failure_threshold": 3},
    }
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        ray.init(address=cluster.address, log_to_driver=False)
        keeper, events = Keeper(), list[Event]()
        lost: list[str] = []
        with ray_engine(case, 2, "direct") as engine:
            for event in engine.train(range(STEPS), CALENDAR, keeper):
                keeper.keep(event)
                events.append(event)
                if isinstance(event, StepDone) and event.step == KILL_AFTER:
                    where = {a.name: a.identity.node for a in engine._chain.actors if a.identity}
                    crowded = max(nodes, key=lambda n: list(where.values()).count(n.node_id))
                    lost = [name for name, node in where.items() if node == crowded.node_id]
                    cluster.remove_node(crowded, allow_graceful=False)
        incidents = [incident.record() for incident in keeper.incidents]
        mine = told(events)
        print(
            json.dumps(
                {"incidents": incidents, "lost": lost, "differences": differences(mine, expected)}
            )
        )
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    main(sys.argv[1])
