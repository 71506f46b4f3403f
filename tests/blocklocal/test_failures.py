"""What fails beside training hides neither its result nor the first error."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow.tracking import MlflowClient
from torch import nn

from blocklocal import UserError, cli, engines, fit, preparation
from blocklocal.config import make_config
from blocklocal.preparation import prepare
from orchestrator.inline import InlineEngine
from orchestrator.planning import make_plan
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import (
    SMALL,
    blobs,
    command,
    listing,
    metrics_of,
    only_sentence,
    refused,
    sentence,
    state_of,
)
from tests.clock import no_waits
from tuning.store import Store

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory, tracked in a file there."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _fail(text: str) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(text)

    return fail


WORDS = [*SMALL, "training.steps=6", "training.evaluate_every=3", "run.directory=run"]


def test_cleaning_up_does_not_hide_the_cause(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(engine: InlineEngine) -> None:
        closed.append(engine)
        raise OSError("no close")

    monkeypatch.setattr(engines.InlineEngine, "close", close)
    monkeypatch.setattr(RunDirectory, "update_state", _fail("no state"))
    before = torch.get_num_threads()
    assert cli.main(["train", *WORDS, "optimizer.lr=1e6", "training.steps=40"]) == 2
    first, *notes = capsys.readouterr().err.splitlines()
    assert "training stopped" in first and len(closed) == 1
    assert notes == [
        "and cleaning up failed: OSError: no state",
        "and cleaning up failed: OSError: no close",
    ]
    torch.set_num_threads(before)


def test_a_failure_of_closing_alone_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.InlineEngine, "close", _fail("no close"))
    with pytest.raises(OSError, match="no close"):
        cli.main(["train", *WORDS])
    assert state_of(Path("run"))["status"] == "finished"


def test_training_outlives_mlflow_and_sends_what_waits_later(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        no_waits(patch)
        patch.setattr(Store, "deliver", _fail("http://me:secret@host is gone"))
        words = [*WORDS, "tracking.enabled=true", "tracking.patience=600"]
        assert cli.main(["train", *words]) == 0
    said = [r.message for r in caplog.records if r.name.startswith(("tuning", "blocklocal"))]
    first, last = said
    assert "fails (http://me:***@host is gone): training goes on, and records wait in" in first
    run = Path("run").absolute()
    assert last.endswith(f"wait in {run / 'tracking'}: send them with blocklocal track {run}")
    assert state_of(run)["status"] == "finished"
    records = int(last.split()[0])
    assert command(capsys, "track", "run") == f"sent {records} records to MLflow\n"
    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    tracked = client.get_run(state_of(run)["mlflow_run_id"])
    assert tracked.info.status == "FINISHED" and len(tracked.outputs.model_outputs) == 1
    losses = [r["block1/loss"] for r in metrics_of(run) if r["split"] == "train"]
    history = client.get_metric_history(tracked.info.run_id, "train/block1/loss")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == losses
    assert command(capsys, "track", "run") == "nothing in run waits for MLflow\n"


def test_a_directory_without_a_run_is_not_sent(capsys: Capture, here: Path) -> None:
    said = refused(capsys, "track", "nowhere")
    assert said == "nowhere holds no run and no sweep: choose the directory of one"


def test_what_waits_is_not_sent_while_nobody_answers(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        no_waits(patch)
        patch.setattr(Store, "deliver", _fail("gone"))
        words = [*WORDS, "tracking.enabled=true", "tracking.patience=600"]
        assert cli.main(["train", *words]) == 0
        capsys.readouterr()
        said = sentence(capsys, "track", "run")
        assert "fails (gone) and" in said and said.endswith("tracking: try again later")
    said = sentence(capsys, "track", "run", "--uri", "http://127.0.0.1:9")
    assert said.startswith("cannot track with MLflow at http://127.0.0.1:9 (")


def test_what_was_given_is_not_tracked_as_defaults(here: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    sections: dict[str, Any] = {
        "training": {"batch": 32, "steps": 1},
        "engine": {"kind": "sequential"},
        "run": {"directory": "run"},
    }
    fit(model, blobs(), blocks=["2"], **sections)
    client = MlflowClient(tracking_uri=f"sqlite:///{here / 'mlflow.db'}")
    run = client.get_run(state_of(here / "run")["mlflow_run_id"])
    assert run.data.tags["network"] == "given" and run.data.tags["rule"] == "local"
    names = [n for n in run.data.params if n.startswith(("network.", "data."))]
    assert sorted(names) == ["data.augment.crop", "data.augment.flip"]


def test_a_cluster_without_room_leaves_nothing_behind(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("the cluster gave no room to block 1: end other work on it")

    monkeypatch.setattr(engines, "InlineEngine", refuse)
    assert refused(capsys, "train", *WORDS).startswith("the cluster gave no room")
    assert listing(here) == {}


def test_the_plan_is_made_as_the_network_will_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def planned(units: Any, settings: Any, sample: torch.Tensor, **options: Any) -> Any:
        seen.append((torch.get_num_threads(), sample.dtype, torch.is_autocast_enabled("cpu")))
        return make_plan(units, settings, sample, **options)

    monkeypatch.setattr(preparation, "make_plan", planned)
    before, sizes = torch.get_num_threads(), {}
    for compute in ("float32", "bfloat16", "float64"):
        tree = {"engine": {"resources": {"threads": 2}}, "precision": {"compute": compute}}
        blocks = prepare(make_config(tree | {"blocks": {"at": ["layer2"]}})).plan.blocks
        sizes[compute] = blocks[-1].boundary_bytes
    assert torch.get_num_threads() == before
    single = torch.float32
    assert seen == [(2, single, False), (2, single, True), (2, torch.float64, False)]
    assert sizes["bfloat16"] * 4 == sizes["float32"] * 2 == sizes["float64"]


def test_a_network_without_parameters_has_a_plan() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.AdaptiveAvgPool1d(4))
    config = make_config({"rule": {"kind": "backprop"}, "blocks": {"count": 1}})
    plan = prepare(config, model=model, dataset=blobs()).plan
    assert plan.blocks[0].parameters == 0


def test_a_run_that_mlflow_refuses_late_fails(
    capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.sending.Store", _fail("no answer"))
    assert cli.main(["train", *WORDS, "tracking.enabled=true"]) == 2
    error = only_sentence(capsys.readouterr().err)
    assert error.startswith(f"cannot track with MLflow at sqlite:///{here}/mlflow.db (no answer): ")
    assert state_of(here / "run")["status"] == "failed"


def test_a_failure_before_the_first_step_is_tracked(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InlineEngine, "train", _fail("gone"))
    with pytest.raises(OSError, match="gone"):
        cli.main(["train", *WORDS, "tracking.enabled=true"])
    client = MlflowClient(tracking_uri=f"sqlite:///{here / 'mlflow.db'}")
    assert client.get_run(state_of(here / "run")["mlflow_run_id"]).info.status == "FAILED"
