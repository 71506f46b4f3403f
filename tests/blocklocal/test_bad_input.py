"""Bad input ends with one sentence and exit code 2, and leaves nothing behind."""

from __future__ import annotations

import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch

from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import (
    SMALL,
    UNTRACKED,
    command,
    listing,
    only_sentence,
    refused,
    save_arrays,
    script,
    sentence,
    state_of,
)

Capture = pytest.CaptureFixture[str]

NETWORKS = """
import torch
from torch import nn


class Poison(nn.Module):
    "Gives NaN from the 13th training pass on."

    def __init__(self):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        if not self.training:
            return x
        self.passes = self.passes + 1
        return x * float("nan") if self.passes > 12 else x


def poisoned():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Poison(), nn.Linear(8, 10))


def few():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3))


def plain():
    return nn.Linear(64, 10)


def odd():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(9, 10))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLOCKLOCAL_CACHE", str(tmp_path.parent / f"{tmp_path.name}-cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainig.batch=3"], "unknown setting trainig: did you mean training?"),
        (["training.steps=many"], "training.steps = 'many' is not possible: input should be"),
        (
            ["blocks.at=[layr2]"],
            "blocks.at names 'layr2', which is not a unit of this network: did you mean 'layer2'?",
        ),
        (
            ["blocks.at=auto", "blocks.count=9"],
            "blocks.count = 9 is more than the 4 units of this network: use at most 4",
        ),
        (["blocks.at=[layer3, layer2]"], "blocks.at = ['layer3', 'layer2'] does not cut"),
        (
            ["data.kind=arrays", "data.path=no.npz"],
            "there is no file no.npz: give the path of an .npz file",
        ),
        (
            ["data.kind=parquet", "data.train=no.parquet", "data.test=no.parquet"],
            "there is no file no.parquet: give the path of a Parquet file",
        ),
        (["training.batch=5000"], "batch 5000 is larger than the 1293 train rows: lower"),
        (["optimizer.lr=[0.1]"], "optimizer.lr lists 1 values for 2 blocks: give one a block"),
        (["rule.kind=bll", "rule.latent.kind=categorical", "rule.latent.states=3"], "rule.latent"),
        (["no-such.yaml"], "'no-such.yaml' is not a setting: write dotted.key=value"),
        (["network.kind=resnet", "network.widths=null"], "network.widths = None is not possible"),
    ],
)
def test_a_run_that_cannot_start(capsys: Capture, words: list[str], said: str) -> None:
    assert refused(capsys, "train", *SMALL, *words).startswith(said)


def test_missing_configuration_file(capsys: Capture) -> None:
    said = "cannot read no.yaml (No such file or directory): give an existing file"
    assert refused(capsys, "train", "no.yaml", *SMALL) == said


def test_bad_yaml(capsys: Capture, here: Path) -> None:
    (here / "bad.yaml").write_text("a: [", encoding="utf-8")
    assert refused(capsys, "train", "bad.yaml").startswith("bad.yaml is not valid YAML (")


def test_corrupt_parquet(capsys: Capture, here: Path) -> None:
    (here / "x.parquet").write_bytes(b"PAR1 this is not Parquet")
    words = ["data.kind=parquet", "data.train=x.parquet", "data.test=x.parquet"]
    said = refused(capsys, "train", *SMALL, *words)
    assert said.startswith("x.parquet cannot be read as Parquet (")
    assert said.endswith("fetch or write the file again")


def test_corrupt_image(capsys: Capture, here: Path) -> None:
    pq.write_table(pa.table({"image": [b"no image"], "label": [0]}), here / "x.parquet")
    words = ["data.kind=parquet", "data.train=x.parquet", "data.test=x.parquet"]
    said = refused(capsys, "train", *SMALL, *words)
    assert said.startswith("the image in row 0 of x.parquet cannot be decoded")


def test_labels_out_of_range(capsys: Capture, here: Path) -> None:
    save_arrays(here / "x.npz", classes=3)
    words = ["data.kind=arrays", "data.path=x.npz", "data.classes=2", "training.batch=8"]
    said = refused(capsys, "train", *SMALL, *words)
    assert said.startswith("label 2 in row 2 of the train data is above 1, the largest of 2")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["network.factory=nowhere:f"], "network.factory = 'nowhere:f' cannot be imported"),
        (["network.factory=bad_networks:g"], "network.factory = 'bad_networks:g' cannot be"),
        (
            ["network.factory=bad_networks:few", "network.arguments.depth=3"],
            "network.factory = 'bad_networks:few' does not take network.arguments = {'depth': 3}",
        ),
        (["network.factory=bad_networks:plain"], "a network must be an nn.Sequential, not Linear"),
        (
            ["network.factory=bad_networks:few"],
            "the network gives an output of shape (3,) for 10 classes: end it with 10 scores",
        ),
        (["network.factory=bad_networks:odd"], "unit '2' fails on an input of shape (32, 8)"),
    ],
)
def test_custom_networks_that_cannot_be_trained(
    capsys: Capture, here: Path, words: list[str], said: str
) -> None:
    (here / "bad_networks.py").write_text(NETWORKS, encoding="utf-8")
    custom = [*UNTRACKED, "training.batch=32", "network.kind=custom", *words]
    assert refused(capsys, "train", *custom).startswith(said)


def test_nan_keeps_the_last_checkpoint(capsys: Capture, here: Path) -> None:
    (here / "nan_networks.py").write_text(NETWORKS, encoding="utf-8")
    custom = ["network.kind=custom", "network.factory=nan_networks:poisoned", "blocks.at=['2']"]
    often = ["training.evaluate_every=5", "training.steps=40", "training.batch=32"]
    words = [*UNTRACKED, *custom, *often, "run.directory=nan"]
    said = sentence(capsys, "train", *words)
    assert said.startswith("the loss of block 2 is nan at step 12: training stopped")
    assert "the last checkpoint is kept" in said
    run = RunDirectory.open(here / "nan")
    assert (run.state.status, run.state.steps) == ("failed", 10)
    assert run.state.error is not None and "block 2 is nan at step 12" in run.state.error
    assert run.checkpoints.last == 10
    for tensors in run.checkpoints.load(10).state.values():
        assert all(torch.isfinite(t).all() for t in tensors.values())
    assert [r["step"] for r in run.read_metrics() if r["split"] == "train"] == [*range(12)]


def test_a_huge_learning_rate(capsys: Capture, here: Path) -> None:
    words = [
        *SMALL,
        "optimizer.kind=sgd",
        "optimizer.lr=1e6",
        "training.evaluate_every=1",
        "run.directory=huge",
    ]
    said = sentence(capsys, "train", *words)
    assert "training stopped" in said and "is kept; lower optimizer.lr" in said
    assert state_of(here / "huge")["status"] == "failed"


@pytest.mark.usefixtures("ray_cluster")
def test_a_plan_that_does_not_fit(capsys: Capture) -> None:
    words = ["engine.kind=ray", "engine.resources.cpus=1000", "run.directory=big"]
    said = refused(capsys, "train", *SMALL, *words)
    assert said.startswith("the plan does not fit the cluster: 2 blocks need 2000 CPUs")
    assert "1 nodes have 4 and 0 free" in said and "engine.resources.cpus" in said


def test_an_unreachable_cluster(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # other tests may share a Ray
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray would try for minutes"))
    said = refused(capsys, "train", *SMALL, "engine.kind=ray", f"engine.address={address}")
    assert said.startswith(f"cannot reach a Ray cluster at engine.address = '{address}' (")
    assert refused(capsys, "doctor", "--address", f"ray://{address}").startswith("cannot reach")


def test_a_tracking_server_that_is_not_there(capsys: Capture, here: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
    words = ["tracking.enabled=true", f"tracking.uri={uri}", "run.directory=lost"]
    assert sentence(capsys, "train", *SMALL, *words).startswith("cannot track with MLflow at http:")
    assert state_of(here / "lost")["status"] == "failed"
    words = ["tracking.enabled=false", "engine.kind=sequential"]
    assert "step 40/40" in command(capsys, "train", "--resume", "lost", *words)


def test_a_real_process(here: Path) -> None:
    done = script("train", "engine.kind=sequential", "blocks.count=9", cwd=here)
    assert done.returncode == 2
    said = "blocks.count = 9 is more than the 4 units of this network: use at most 4"
    assert only_sentence(done.stderr) == said
    assert done.stdout == "" and listing(here) == {}
