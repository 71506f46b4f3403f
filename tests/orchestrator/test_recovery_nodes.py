"""The node of several blocks is killed: they go on elsewhere, with the same bits at the end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rule", ["bll"])
def test_blocks_of_a_killed_node_go_on_elsewhere_with_the_same_bits(rule: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.orchestrator.nodes", rule],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith('{"incidents"'))
    said = json.loads(line)
    assert said["differences"] == []
    (incident,) = said["incidents"]
    losses = {loss["name"]: loss["kind"] for loss in incident["losses"]}
    assert losses == dict.fromkeys(said["lost"], "node") and len(losses) >= 2
    assert incident["resumed"] % 200 == 0 and incident["resumed"] >= 400
