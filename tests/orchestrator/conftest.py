"""Run directories, and engines with lanes, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.engine import RayEngine
from orchestrator.lane_settings import LaneSettings
from orchestrator.rundir import RunDirectory
from orchestrator.settings import RecoverySettings, SourcePlace, Transport
from tests.orchestrator.engines import CPUS, Case, eventually, free_cpus, start_chain
from tests.orchestrator.processes import Processes
from tests.orchestrator.runs import PLAN


@pytest.fixture(scope="module")
def processes(ray_cluster: None) -> Iterator[Processes]:
    """Actor processes that the tests of a file share."""
    shared = Processes()
    yield shared
    shared.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    """A run directory whose lock this process holds."""
    directory = RunDirectory.create(tmp_path / "run", config={}, version={}, plan=PLAN)
    with directory.lock():
        yield directory


@pytest.fixture
def start_lanes() -> Iterator[Callable[..., RayEngine]]:
    """Engines with lanes, closed afterwards."""
    engines: list[RayEngine] = []

    def starting(
        case: Case,
        least: int,
        most: int,
        transport: Transport = "direct",
        source: SourcePlace = "block1",
        recovery: RecoverySettings | None = None,
    ) -> RayEngine:
        chain = start_chain(case, 2, transport, source, lanes=least, grows=True)
        settings = LaneSettings(min=least, max=most)
        engines.append(RayEngine(chain, recovery, settings))
        return engines[-1]

    yield starting
    for engine in engines:
        engine.close()
    assert eventually(lambda: free_cpus() == CPUS)


@pytest.fixture
def step_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that something can change before every step, and the driver looks at once."""
    monkeypatch.setattr("orchestrator.stream.CHUNK_SECONDS", 0.0)
    monkeypatch.setattr("orchestrator.elasticity.LOOK_SECONDS", 0.0)
