"""What MLflow knows after a run, read by a client of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import mlflow.pyfunc
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from blocklocal import cli, sending
from blocklocal.config import dotted, load_config
from blocklocal.inference import evaluate_model
from learning.data import load_dataset
from learning.networks import build_network
from orchestrator.plan import Plan
from tests.blocklocal.helpers import SMALL, metrics_of, state_of

WORDS = (
    *SMALL,
    "training.steps=6",
    "training.evaluate_every=3",
    "tracking.enabled=true",
    "tracking.run_name=mine",
)


@pytest.fixture(scope="module", autouse=True)
def local() -> Iterator[None]:
    """Track in a file, whatever the environment says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a tracked run."""
    path = tmp_path_factory.mktemp("tracked") / "run"
    assert cli.main(["train", *WORDS, f"run.directory={path}"]) == 0
    return path


def _tracked(run: Path) -> tuple[MlflowClient, Run]:
    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    return client, client.get_run(state_of(run)["mlflow_run_id"])


def test_the_run_is_the_only_one_and_finished(finished: Path) -> None:
    client, run = _tracked(finished)
    experiment = client.get_experiment_by_name("blocklocal")
    assert experiment is not None and run.info.experiment_id == experiment.experiment_id
    assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")


def test_parameters_are_the_resolved_configuration(finished: Path) -> None:
    _, run = _tracked(finished)
    config = load_config(None, [*WORDS, f"run.directory={finished}"])
    assert run.data.params == {key: str(value) for key, value in dotted(config).items()}
    assert run.data.params["optimizer.lr"] == "0.01"
    assert run.data.params["network.widths"] == "[16, 16, 16]"


def test_every_metric_of_every_step_is_there(finished: Path) -> None:
    client, run = _tracked(finished)
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in metrics_of(finished):
        for name, value in record.items():
            if name not in ("step", "split"):
                key = f"{record['split']}/{name}"
                expected.setdefault(key, []).append((record["step"], value))
    assert set(run.data.metrics) == set(expected)
    assert len(expected["train/block1/loss"]) == 6
    assert len(expected["validation/block2/accuracy"]) == 2
    for key, values in expected.items():
        history = client.get_metric_history(run.info.run_id, key)
        assert [(m.step, m.value) for m in history] == values


def test_tags_say_rule_network_plan_and_commit(finished: Path) -> None:
    _, run = _tracked(finished)
    assert run.data.tags["rule"] == "local" and run.data.tags["network"] == "mlp"
    assert run.data.tags["plan"] == Plan.load(finished / "plan.json").hash()
    assert run.data.tags["commit"]


def test_the_final_weights_are_an_artifact(finished: Path, tmp_path: Path) -> None:
    client, run = _tracked(finished)
    top = {file.path for file in client.list_artifacts(run.info.run_id)}
    assert top == {"weights", "config.yaml", "plan.json", "version.json", "report.md", "trace.json"}
    (file,) = client.list_artifacts(run.info.run_id, "weights")
    copy = client.download_artifacts(run.info.run_id, file.path, str(tmp_path))
    config = load_config(finished / "config.yaml")
    model = build_network(config.network, (1, 8, 8), 10, seed=99)
    model.load_state_dict(load_file(copy), strict=True)
    _, accuracy = evaluate_model(model, load_dataset(config.data), "test", config)
    assert accuracy == metrics_of(finished)[-1]["block2/accuracy"]


def test_the_final_model_is_logged_once_with_its_signature(finished: Path) -> None:
    client, run = _tracked(finished)
    (model,) = client.search_logged_models(
        [run.info.experiment_id], f"source_run_id = '{run.info.run_id}'"
    )
    (output,) = run.outputs.model_outputs
    assert (output.model_id, output.step) == (model.model_id, 6)
    loaded = mlflow.pyfunc.load_model(model.artifact_location)
    assert loaded.metadata.signature.inputs.inputs[0].shape == (-1, 1, 8, 8)
    config = load_config(finished / "config.yaml")
    data = load_dataset(config.data)
    x, y = data.test.x, data.test.y
    assert x.max() == 16  # raw rows, as scikit-learn has them
    right = loaded.predict(x).argmax(-1) == y
    assert right.mean() == metrics_of(finished)[-1]["block2/accuracy"]


def test_nothing_waits(finished: Path) -> None:
    assert {path.name for path in (finished / "tracking").iterdir()} == {"lock", "sent.json"}
    assert sending.send(finished, None) == (0, None)


def test_a_resumed_run_goes_on_in_the_same_one(finished: Path) -> None:
    before = state_of(finished)["mlflow_run_id"]
    assert cli.main(["train", "--resume", str(finished), "tracking.enabled=false"]) == 0
    assert state_of(finished)["mlflow_run_id"] == before
    assert cli.main(["train", "--resume", str(finished)]) == 0
    assert state_of(finished)["mlflow_run_id"] == before
    _, run = _tracked(finished)
    assert run.info.status == "FINISHED" and len(run.outputs.model_outputs) == 1


def test_a_failed_run_is_failed(finished: Path) -> None:
    path = finished.parent / "failed"
    assert cli.main(["train", *WORDS, "optimizer.lr=1e6", f"run.directory={path}"]) == 2
    client, run = _tracked(path)
    assert run.info.status == "FAILED"
    history = client.get_metric_history(run.info.run_id, "train/block1/loss")
    assert [m.step for m in history] == [
        r["step"] for r in metrics_of(path) if r["split"] == "train"
    ]


def test_without_tracking_there_is_no_database(tmp_path: Path) -> None:
    words = [*WORDS, "tracking.enabled=false", f"run.directory={tmp_path / 'run'}"]
    assert cli.main(["train", *words]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    assert state_of(tmp_path / "run")["mlflow_run_id"] is None
