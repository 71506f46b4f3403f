"""What can be asked before training: the plan, and checks of the machine."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray
from torch import nn

from blocklocal import UserError, fit, launch
from blocklocal.clusters import cluster
from blocklocal.config import make_config
from blocklocal.early import SCHEMA, made
from orchestrator.plan import Plan
from tests.blocklocal.helpers import SMALL, blobs, command, only_sentence

Capture = pytest.CaptureFixture[str]


def test_a_local_ray_reports_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    said = []
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: said.append(os.environ["RAY_USAGE_STATS_ENABLED"]))
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with cluster(make_config({})):
        pass
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    with cluster(make_config({})):
        pass
    assert said == ["0", "1"]


def test_a_directory_that_is_taken_is_told_before_a_cluster_starts(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a cluster was started"))
    (tmp_path / "run.log").write_text("mine")
    said = f"run.directory = {tmp_path} exists and is not an empty directory"
    assert launch.main(["train", *SMALL, "engine.kind=ray", f"run.directory={tmp_path}"]) == 2
    assert said in only_sentence(capsys.readouterr().err)
    with pytest.raises(UserError, match="exists and is not an empty directory"):
        fit(nn.Sequential(nn.Linear(8, 4)), blobs(), run={"directory": str(tmp_path)})


@pytest.mark.parametrize("given", [None, ([[1.0]], [0]), {"x": [1.0]}])
def test_what_is_no_network_or_no_data_is_told_before_a_cluster_starts(
    monkeypatch: pytest.MonkeyPatch, given: Any
) -> None:
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a cluster was started"))
    with pytest.raises(UserError, match="data are no Dataset .*: give what blocklocal.arrays_data"):
        fit(nn.Sequential(nn.Linear(8, 4)), given)
    with pytest.raises(UserError, match="model is no nn.Module .*: give a network"):
        fit(given, blobs())


def test_plan_prints_and_saves(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    out = command(capsys, "plan", *SMALL, "--save", file)
    plan = Plan.load(file)
    assert [b.units for b in plan.blocks] == [("layer1",), ("layer2", "layer3", "head")]
    assert f"plan {plan.hash()}" in out and "layer2 .. head" in out
    assert "one step of rule local" in out and "steps/s with rule local" in out
    assert "keeps the most" in out and "source" in out


@pytest.mark.parametrize(
    ("words", "local"),
    [
        ([], True),
        (["some.yaml", "training.steps=2"], True),
        (["engine.window=2"], True),
        (["engine.kind=sequential"], False),
        (["engine.address=auto"], False),
        (["elsewhere.yaml"], False),
        (["sequential.yaml"], False),
        (["odd.yaml"], False),
        (["missing.yaml"], False),
        (["broken.yaml"], False),
        (["--resume", "run"], False),
        (["some.yaml", "--dry-run"], False),
    ],
)
def test_a_cluster_is_started_early_only_where_it_will_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], local: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.yaml").write_text("{data: {kind: digits}, engine: {window: 2}}")
    Path("elsewhere.yaml").write_text("{engine: {address: 'auto'}}")
    Path("sequential.yaml").write_text("{engine: {kind: sequential}}")
    Path("odd.yaml").write_text("engine: sequential")
    Path("broken.yaml").write_text("{")
    assert launch.wants_local_cluster(["train", *words]) is local
    assert not launch.wants_local_cluster(["plan", *words])


def test_a_refused_configuration_takes_the_early_cluster_with_it(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    did = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(did))
    monkeypatch.setattr(ray, "init", lambda **_: did.append("init"))
    monkeypatch.setattr(ray, "shutdown", lambda: did.append("shutdown"))
    shards = ["training.batch=10", "training.shards=4"]  # each of them is right in itself
    assert launch.main(["train", *shards]) == 2
    assert "training.batch" in only_sentence(capsys.readouterr().err)
    assert did == ["init", "shutdown"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.batch=none"], "training.batch = 'none' is not possible"),
        (["training.batch=yes"], "training.batch = 'yes' is not possible"),
        (["training.bach=3"], "unknown setting training.bach: did you mean training.batch?"),
        (["optimizer.lr=.inf"], "optimizer.lr = inf is not possible"),
        (["rule.kind=magic"], "rule.kind = 'magic' is unknown"),
        (["rule.kind=bll", "rule.latent.grid=0"], "rule.latent.grid = 0 is not possible"),
        (["rule.reach=2"], "rule.kind = local has no setting reach"),
        (["data.kind=arrays"], "data.path is missing"),
        (["twice.yaml"], "twice.yaml is not valid YAML (line 2: the key 'run' is there already"),
        (["missing.yaml"], "cannot read missing.yaml"),
        (["run.name=[a"], "the value of 'run.name=[a' is not valid YAML"),
    ],
)
def test_a_wrong_configuration_is_told_before_a_cluster_starts(
    capsys: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("twice.yaml").write_text("run: {name: a}\nrun: {name: b}\n")
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("a cluster was started"))
    assert launch.main(["train", *words]) == 2
    assert only_sentence(capsys.readouterr().err).startswith(said)


def test_the_schema_is_that_of_the_settings() -> None:
    assert SCHEMA.read_text() == made(), "write it anew: python -m blocklocal.early"


def test_a_local_cluster_that_does_not_start(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_: object) -> None:
        raise Exception("timed out\nduring startup.")  # bare, as Ray raises it

    monkeypatch.setattr(ray, "init", fail)
    assert launch.main(["train"]) == 2
    assert only_sentence(capsys.readouterr().err) == (
        "cannot start Ray on this machine (timed out during startup.): free memory and disk space, "
        "or train in this process with engine.kind = sequential"
    )


def test_what_training_needs_is_imported_while_ray_starts(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported = threading.Event()

    def import_module(name: str) -> object:
        module = importlib.import_module(name)
        if name == "blocklocal.commands.train":
            imported.set()
        return module

    def start(**_: object) -> None:
        if not imported.wait(60):
            pytest.fail("nothing was imported while Ray started")

    monkeypatch.setattr(launch, "import_module", import_module)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    assert launch.main(["train", "training.batch=10", "training.shards=4"]) == 2
    assert "training.batch" in only_sentence(capsys.readouterr().err)


def test_what_comes_before_a_cluster_imports_no_torch() -> None:
    script = "import sys, blocklocal.launch, blocklocal.clusters; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr
