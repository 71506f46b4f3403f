"""The simulator's benchmark: it runs, it fits what it says, its errors are right."""

from __future__ import annotations

import json
from operator import attrgetter
from pathlib import Path

import pytest

from benchmarks import records, simulation, simulation_cores
from orchestrator.clusters import ClusterDescription

MACHINE = ClusterDescription(kind="cpu", devices=2)


@pytest.mark.parametrize(
    ("name", "measured", "value"),
    [
        ("contention", 8.0, 0.2),
        ("crowding", 7.0, 0.3),
        ("within.latency", 9.9, 0.01),
        ("message.daemons", 9.98, 0.002),
        ("speed", 9.0, 0.9),
        ("speed", 99.0, 1.5),
    ],
)
def test_the_number_at_which_the_prediction_is_the_measurement(
    name: str, measured: float, value: float
) -> None:
    def predict(machine: ClusterDescription) -> float:
        number = attrgetter(name)(machine)
        return 10 * number if name == "speed" else 10 * (1 - number)

    assert simulation_cores.fit(MACHINE, name, predict, measured) == pytest.approx(value, abs=1e-3)


def test_numbers_that_explain_each_other_are_fitted_together() -> None:
    """Each rate falls with both numbers; fitted once each, the first would explain it all."""

    def run(a: float, b: float) -> simulation_cores.Measured:
        def predict(machine: ClusterDescription) -> float:
            return 10 * (1 - a * machine.contention - b * machine.crowding)

        return simulation_cores.Measured(predict, 10 * (1 - a * 0.2 - b * 0.3))

    runs = {"contention": [run(1.0, 0.2)], "crowding": [run(0.2, 1.0)]}
    machine = simulation_cores.fit_in_turn(MACHINE, runs)
    assert machine.contention == pytest.approx(0.2, abs=1e-3)
    assert machine.crowding == pytest.approx(0.3, abs=1e-3)


def test_the_machine_is_described_and_a_run_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    monkeypatch.setattr(records, "environment", lambda: {"hardware": "none", "versions": {}})
    monkeypatch.setattr(records, "footer", lambda _: "")
    words = ["--tiny", "--repeats", "1", "--steps", "10", "--cases", "1"]
    simulation.main([*words, "--directory", str(tmp_path)])
    record = json.loads((tmp_path / "simulation.json").read_text())
    (samples,) = record["samples"].values()
    assert samples["predicted"][0] > 0 and samples["measured"][0] > 0
    machine = record["machine"]
    for key, (low, high) in simulation_cores.BOUNDS.items():
        *part, name = key.split(".")
        assert low <= (machine[part[0]] if part else machine)[name] <= high
    assert machine["message"]["send"] + machine["message"]["receive"] > 0
    assert "of 1 configurations are predicted" in (tmp_path / "simulation.md").read_text()


def test_the_error_is_that_of_medians() -> None:
    samples = {"predicted": [9.0, 11.0, 30.0], "measured": [10.0, 1.0, 12.0]}
    assert simulation.error(samples) == pytest.approx(0.1)
