"""Metrics for operators: what Ray exports, and that the dashboard asks for nothing else."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.request
from pathlib import Path

import pytest
import ray

from actors.operations import Span
from blocklocal import cli
from blocklocal.gauges import COUNTERS, EVERY_SECONDS, GAUGES, RayMetrics
from orchestrator.events import Changed
from orchestrator.incidents import Incident
from orchestrator.losses import Loss
from orchestrator.readings import Reading
from tests.blocklocal.helpers import SMALL, spans_of

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "docs/dashboards/blocklocal.json"
EXPORTED = {f"ray_{name}" for name in GAUGES} | {f"ray_{name}_total" for name in COUNTERS}
RARE = {"ray_blocklocal_incidents_total", "ray_blocklocal_steps_again_total"}
"""Exported only after a loss."""


def asked() -> set[str]:
    """The metrics in all queries of the dashboard."""
    return set(re.findall(r"\bray_blocklocal_\w+", DASHBOARD.read_text()))


class Recorder:
    """Counters and gauges that remember."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.values: dict[tuple[str, str], float] = {}
        recorder = self

        class Metric:
            def __init__(self, name: str, text: str, tags: tuple[str, ...]) -> None:
                assert text and tags[0] == "run"
                self.name, self.tags = name, set(tags) - {"run"}

            def set_default_tags(self, tags: dict[str, str]) -> None:
                assert set(tags) == {"run"}

            def set(self, value: float, tags: dict[str, str] | None = None) -> None:
                assert set(tags or {}) == self.tags
                recorder.values[self.name, "".join((tags or {}).values())] = value

            def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
                assert value > 0 and set(tags or {}) == self.tags
                key = self.name, "".join((tags or {}).values())
                recorder.values[key] = recorder.values.get(key, 0) + value

        monkeypatch.setattr("blocklocal.gauges.Gauge", Metric)
        monkeypatch.setattr("blocklocal.gauges.Counter", Metric)


def test_numbers_are_written_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder, now, told = Recorder(monkeypatch), [0.0], list[tuple[int, Reading]]()
    metrics = RayMetrics("run", 10, 2, lambda *x: told.append(x), lambda: now[0])
    values = recorder.values
    assert values["blocklocal_step", ""] == 10 and values["blocklocal_lanes", ""] == 2
    for step in range(10, 15):
        metrics.stepped(step, {"block1": {"loss": 2.0 / step}, "feedback1": {}})
    metrics.worked("block1", [Span("F", 14, 0, 0, 100, 25, 0)])
    metrics.sent("block1", 300)
    assert values["blocklocal_step", ""] == 10 and not told  # not yet
    now[0] += EVERY_SECONDS
    metrics.worked("block1", [Span("F", 14, 0, 0, 100, 50, 0)])
    metrics.sent("block1", 200)
    assert values["blocklocal_step", ""] == 15 and values["blocklocal_steps", ""] == 5
    assert values["blocklocal_loss", "block1"] == 2.0 / 14
    assert values["blocklocal_idle_share", "block1"] == 0.5
    assert values["blocklocal_sent_bytes", "block1"] == 500
    assert told == [(15, Reading({"block1": 0.5}, 0, {}))]
    metrics.publish()
    assert values["blocklocal_idle_share", "block1"] == 0.5
    losses = [Loss("block1", "actor", "", 0, ""), Loss("block2", "node", "", 0, "")]
    metrics.recovered(Incident(1, 0.0, 15, losses, resumed=12, lanes=1))
    storage = [Loss("checkpoint", "storage", "", 0, "")]
    metrics.recovered(Incident(0, 0.0, 15, storage, instead="went on"))
    metrics.recovered(Incident(2, 0.0, 15, resumed=15))
    metrics.publish()
    kinds = ("actor", "node", "storage", "connection")
    assert [values["blocklocal_incidents", kind] for kind in kinds] == [1, 1, 1, 1]
    assert values["blocklocal_steps_again", ""] == 3 and values["blocklocal_lanes", ""] == 1
    assert math.isnan(values["blocklocal_idle_share", "block1"])  # it has not been heard since
    metrics.changed(Changed(20, "a lane came", 3))
    metrics.worked("block1", [Span("F", 14, 0, 0, 100, 25, 0)])
    metrics.sent("block1", 0)
    metrics.publish()
    assert values["blocklocal_idle_share", "block1"] == 0.25
    assert values["blocklocal_lanes", ""] == 3 and values["blocklocal_steps", ""] == 5
    assert {name for name, _ in values} == {*GAUGES, *COUNTERS} - {"blocklocal_in_flight_bytes"}


def test_the_dashboard_shows_all_that_is_exported_and_no_more() -> None:
    assert asked() == EXPORTED
    board = json.loads(DASHBOARD.read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    for panel in board["panels"]:
        assert panel["title"] and panel["description"]
        assert all('{run=~"$run"}' in target["expr"] for target in panel["targets"])


def test_the_page_lists_all_that_is_exported() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    assert set(re.findall(r"\bray_blocklocal_\w+", page)) == EXPORTED


def exported() -> str:
    """What Prometheus would read from this machine's node."""
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"
    with urllib.request.urlopen(address, timeout=600) as answer:
        return answer.read().decode()


def test_a_run_exports_what_the_dashboard_asks_for(ray_cluster: None, tmp_path: Path) -> None:
    path = tmp_path / "exporting"
    words = [*SMALL, "engine.kind=ray", "engine.resources.cpus=1", f"run.directory={path}"]
    assert cli.main(["train", *words]) == 0
    asked_for, deadline = asked() - RARE, time.monotonic() + 600
    while True:  # Ray's agent collects every ten seconds
        lines = [line for line in exported().splitlines() if 'run="exporting"' in line]
        values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines}
        found = {name.partition("{")[0] for name in values}
        if found >= asked_for:
            break
        assert time.monotonic() < deadline, f"not exported: {asked_for - found}"
    assert found == asked_for

    def of(name: str) -> dict[str, float]:
        """By actor, learner or "": the values of a metric."""
        chosen = {k: v for k, v in values.items() if k.startswith(name + "{")}
        tags = {k: re.search(r'(?:actor|learner)="(\w+)"', k) for k in chosen}
        return {tag[1] if (tag := tags[k]) else "": v for k, v in chosen.items()}

    assert of("ray_blocklocal_steps_total") == of("ray_blocklocal_step") == {"": 40.0}
    assert of("ray_blocklocal_lanes") == {"": 1.0}
    actors = {span["actor"] for span in spans_of(path)}
    idle = of("ray_blocklocal_idle_share")
    assert set(idle) == actors and all(0 <= share < 1 for share in idle.values())
    assert of("ray_blocklocal_sent_bytes_total")["block1"] >= 40 * 32 * 16 * 4
    assert 0 <= of("ray_blocklocal_in_flight_bytes")["block1"] < 40 * 32 * 16 * 4 * 2
    assert 0 <= of("ray_blocklocal_steps_apart")[""] <= 40
    assert set(of("ray_blocklocal_loss")) == {"block1", "block2"}
