"""Training from Python, and the user's own networks, on Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import blocklocal
from blocklocal import UserError, cli, fit
from tests.blocklocal.helpers import blobs, metrics_of, script, spans_of, state_of

NETWORK = """
from torch import nn


class Layer(nn.Module):
    def __init__(self, size, width):
        super().__init__()
        self.linear = nn.Linear(size, width)

    def forward(self, x):
        return self.linear(x.flatten(1)).relu()


def make(width):
    return nn.Sequential(Layer(64, width), Layer(width, width), nn.Linear(width, 10))
"""


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


def _sections(run: Path, **training: Any) -> dict[str, Any]:
    return {
        "training": {"batch": 32, "steps": 40, **training},
        "engine": {"resources": {"threads": 1}},
        "tracking": {"enabled": False},
        "run": {"directory": run},
    }


def _accuracy(model: nn.Module) -> float:
    data = blobs()
    x = data.preprocessing.apply(data.test.x)
    model.eval()
    return (model(x).argmax(-1).numpy() == data.test.y).mean()


def test_the_package_says_what_it_offers() -> None:
    assert {"Dataset", "Observer", "StopTraining", "fit"} <= set(blocklocal.__all__)
    assert all(hasattr(blocklocal, name) for name in blocklocal.__all__)


@pytest.mark.usefixtures("ray_cluster")
def test_fit_learns_in_place(tmp_path: Path) -> None:
    model = _network()
    assert _accuracy(model) < 0.6
    sections = _sections(tmp_path / "run")
    result = fit(model, blobs(), rule="bll", blocks=["2"], optimizer={"lr": 0.01}, **sections)
    assert result.model is model
    assert [b.units for b in result.plan.blocks] == [("0", "1"), ("2", "3", "4")]
    assert _accuracy(model) > 0.95  # chance is 0.25
    assert result.metrics["test/block2/accuracy"] == pytest.approx(_accuracy(model))
    assert result.directory == tmp_path / "run"
    actors = {span["actor"] for span in spans_of(result.directory)}
    assert actors == {"source", "block1", "block2", "feedback1"}


@pytest.mark.usefixtures("ray_cluster")
def test_a_learning_rate_for_each_block_on_ray(tmp_path: Path) -> None:
    model = _network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = {"kind": "sgd", "lr": [0.0, 0.05]}
    sections = _sections(tmp_path / "run", steps=5)
    result = fit(model, blobs(), rule={"kind": "local"}, optimizer=optimizer, blocks=2, **sections)
    after = model.state_dict()
    frozen = {name.split(".")[0] for name, tensor in before.items() if after[name].equal(tensor)}
    first = {unit for unit in result.plan.blocks[0].units if unit in ("0", "2", "4")}
    assert first and frozen == first


def test_fit_without_ray_gives_the_same_records(tmp_path: Path) -> None:
    sections = _sections(tmp_path / "run", steps=3) | {"engine": {"kind": "sequential"}}
    result = fit(_network(), blobs(), blocks=["2"], **sections)
    assert state_of(result.directory)["status"] == "finished"
    records = [r for r in metrics_of(result.directory) if r["split"] == "train"]
    assert [r["step"] for r in records] == [0, 1, 2]
    assert 0 <= records[0]["block1/accuracy"] <= 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"rule": "magic"}, "rule.kind = 'magic' is unknown"),
        ({"blocks": 9}, "blocks.count = 9 is more than the 5 units of this network"),
        ({"blocks": ["7"]}, "blocks.at names '7', which is not a unit"),
        ({"network": {}}, "fit trains the model it is given: leave the section network out"),
        (
            {"data": {"augment": {}, "validation": 0}},
            "fit trains on the data it is given, which data.validation does not change",
        ),
        ({"data": blobs()}, "fit takes model and data by position"),
        ({"checkpoint": 3}, "checkpoint goes with resume only"),
        ({"optimiser": {"lr": 1}}, "unknown setting optimiser: did you mean optimizer?"),
        ({"model": nn.Linear(8, 4)}, "a network must be an nn.Sequential, not Linear"),
        ({"model": nn.Sequential(nn.Linear(7, 4))}, "unit '0' fails on an input of shape"),
    ],
)
def test_fit_refuses_what_cannot_be_run(
    tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    sections = _sections(tmp_path / "run") | {"engine": {"kind": "sequential"}}
    with pytest.raises(UserError) as caught:
        given = {"model": _network(), "blocks": 1, **sections, **arguments}
        fit(given.pop("model"), blobs(), **given)
    assert str(caught.value).startswith(said)
    assert not (tmp_path / "run").exists()


def test_a_network_of_fit_cannot_be_evaluated_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = _sections(tmp_path / "run", steps=1) | {"engine": {"kind": "sequential"}}
    fit(_network(), blobs(), blocks=["2"], **sections)
    assert cli.main(["eval", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "was trained in Python with data and network in memory" in said


def test_a_custom_network_from_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_network.py").write_text(NETWORK, encoding="utf-8")
    network = ["network.kind=custom", "network.factory=own_network:make"]
    training = ["training.batch=32", "training.steps=60", "optimizer.lr=0.01", "blocks.at=['1']"]
    rest = ["engine.resources.threads=1", "tracking.enabled=false", "run.directory=out"]
    monkeypatch.delenv("PYTHONPATH", raising=False)
    done = script("train", *network, "network.arguments.width=32", *training, *rest, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    last = metrics_of(tmp_path / "out")[-1]
    assert last["split"] == "test" and last["block2/accuracy"] > 0.5
    assert f"run directory: {tmp_path / 'out'}" in done.stdout
