"""Nodes come, drain and are killed while a run goes on, with the same bits at the end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent


def scene(what: str, rule: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.orchestrator.nodes", what, rule],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1100,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"incidents"'))
    said = json.loads(line)
    assert said["differences"] == []
    return said


@pytest.mark.parametrize("rule", ["bll"])
def test_blocks_of_a_killed_node_go_on_elsewhere(rule: str) -> None:
    said = scene("kill", rule)
    (incident,) = said["incidents"]
    losses = {loss["name"]: loss["kind"] for loss in incident["losses"]}
    assert losses == dict.fromkeys(said["lost"], "node") and len(losses) >= 2
    assert incident["resumed"] % 200 == 0 and incident["resumed"] >= 400


@pytest.mark.parametrize("rule", ["local"])
def test_lanes_follow_the_nodes_that_join_drain_and_are_killed(rule: str) -> None:
    said = scene("grow", rule)
    lanes = [lanes for lanes, _ in said["changes"]]
    assert lanes[:3] == [2, 3, 2]  # and perhaps 3 again, where there is room on the third node
    assert "drains" in said["changes"][2][1]
    assert said["extra"]  # a snapshot when the end of a node was announced
    (incident,) = said["incidents"]
    assert {loss["kind"] for loss in incident["losses"]} == {"node"}
    # Others of that lane may still answer, until they notice that their node has gone.
    assert set() < {loss["name"] for loss in incident["losses"]} <= set(said["lost"])
    assert incident["lanes"] == 1
    assert said["nodes"][0] not in said["where"].values()


@pytest.mark.parametrize("rule", ["bll"])
def test_the_blocks_of_a_draining_node_move(rule: str) -> None:
    said = scene("drain", rule)
    assert said["incidents"] == [] and said["extra"]
    (change,) = said["changes"]
    assert change[0] == 1 and "moved, because its node drains" in change[1]
    assert set(said["where"].values()) == {said["nodes"][1]}


@pytest.mark.parametrize("rule", ["local"])
def test_blocks_move_to_the_node_that_is_named_and_off_a_slow_one(rule: str) -> None:
    said = scene("rebalance", rule)
    assert said["incidents"] == []
    first, second = (what for _, what in said["changes"][:2])
    assert first == "block3 moved, because of a test"
    assert re.fullmatch(r"block2 moved, because it took \d+% more of a step than planned", second)
    one, empty, named = said["nodes"]
    assert said["where"] == {"block1": one, "block2": empty, "block3": named}
