"""What was trained takes raw rows: in Python, from a run, as an exported file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

import blocklocal
from blocklocal import Result, UserError, arrays_dataset, cli, fit
from blocklocal.config import make_config
from learning.data import load_dataset
from learning.networks import build_network
from orchestrator.files import sealed, unsealed
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL, blobs, command, metrics_of, save_arrays, sentence
from tests.docs.pages import ROOT, code_blocks

Capture = pytest.CaptureFixture[str]
DATA = blobs()
X, Y = DATA.train.x, DATA.train.y
X_TEST, Y_TEST = DATA.test.x, DATA.test.y
SAME = arrays_dataset(X, Y, X_TEST, Y_TEST, class_names=["a", "b", "c", "d"])


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 4))


def trained(path: Path, change: Any = lambda x: x, order: Any = slice(None), **more: Any) -> Result:
    """Train on changed rows in some order."""
    data = arrays_dataset(change(X)[order], Y[order], change(X_TEST), Y_TEST, **more)
    training = {"batch": 32, "steps": 60, "evaluate_every": 20}
    engine = {"kind": "sequential", "resources": {"threads": 1}}
    return fit(
        network(),
        data,
        blocks=["3"],
        optimizer={"lr": 0.01},
        training=training,
        engine=engine,
        tracking={"enabled": False},
        run={"directory": path},
    )


def share(found: np.ndarray, right: np.ndarray = Y_TEST) -> float:
    return float((found == right).mean())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return trained(tmp_path_factory.mktemp("plain") / "run", class_names=["a", "b", "c", "d"])


CHANGES = {
    "offset": lambda x: x * 50 + 200,
    "small units": lambda x: x * np.float32(1e-9),
    "one large feature": lambda x: x * np.array([1e6, *[1] * 7], np.float32),
    "double with an offset": lambda x: x.astype(np.float64) + 1e9,
}


@pytest.mark.parametrize("change", CHANGES)
def test_units_decide_nothing_and_raw_rows_are_predicted(
    tmp_path: Path, plain: Result, change: str
) -> None:
    result = trained(tmp_path / "run", CHANGES[change])
    found = share(result.predict(CHANGES[change](X_TEST)))
    assert found == pytest.approx(result.metrics["test/block2/accuracy"])
    assert found > 0.95 and abs(found - plain.metrics["test/block2/accuracy"]) <= 0.02


def test_units_that_are_powers_of_two_train_the_same_bits(tmp_path: Path, plain: Result) -> None:
    units = np.exp2(np.array([0, -30, 90, 3, -100, 7, 1, -1])).astype(np.float32)
    result = trained(tmp_path / "run", lambda x: x * units)
    for mine, theirs in zip(result.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_rows_sorted_by_class_are_validated_on_all_classes(tmp_path: Path) -> None:
    order = np.argsort(Y, kind="stable")
    result = trained(tmp_path / "run", order=order)
    assert result.metrics["validation/block2/accuracy"] > 0.9
    assert share(result.predict(X_TEST)) > 0.95


def test_the_model_is_in_evaluation_mode_and_knows_its_classes(plain: Result) -> None:
    assert not any(module.training for module in plain.model.modules())
    assert plain.preprocessing is not None
    assert plain.preprocessing.class_names == ("a", "b", "c", "d")
    assert plain.predict(X_TEST[:5].tolist()).tolist() == plain.predict(X_TEST[:5]).tolist()


def test_a_run_of_fit_is_loaded_into_its_network(plain: Result) -> None:
    with pytest.raises(UserError, match=r"network in memory: give it, blocklocal\.load\(run, mod"):
        blocklocal.load(plain.directory)
    again = blocklocal.load(plain.directory, "last", model=network())
    assert np.array_equal(again.scores(X_TEST), plain.scores(X_TEST))
    assert again.preprocessing == plain.preprocessing and again.preprocessing == SAME.preprocessing
    early = blocklocal.load(plain.directory, 40, model=network())
    assert not np.array_equal(early.scores(X_TEST), plain.scores(X_TEST))
    accuracies = {
        record["step"] + 1: record["block2/accuracy"]
        for record in metrics_of(plain.directory)
        if record["split"] == "validation"
    }
    for step, one in ((40, early), (60, again)):
        held = SAME.validation
        assert share(one.predict(held.x), held.y) == pytest.approx(accuracies[step])
    with pytest.raises(UserError, match="there is no checkpoint 5"):
        blocklocal.load(plain.directory, 5, model=network())
    with pytest.raises(UserError, match="is not a run directory"):
        blocklocal.load(plain.directory / "elsewhere")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "run"
    assert cli.main(["train", *SMALL, "training.steps=120", f"run.directory={path}"]) == 0
    return path


def accuracy_of(said: str) -> float:
    return float(said.split("accuracy ")[1].split("%")[0]) / 100


def test_an_export_is_enough_for_plain_pytorch(
    capsys: Capture, digits: Path, tmp_path: Path
) -> None:
    file = tmp_path / "digits.safetensors"
    command(capsys, "export", digits, file)
    expected = accuracy_of(command(capsys, "eval", digits))
    assert expected > 0.85
    config = make_config(RunDirectory.open(digits).config)
    test = load_dataset(config.data).test
    assert test.x.max() == 16  # pixels, as scikit-learn has them

    model = build_network(config.network, (1, 8, 8), 10, seed=99)
    (code,) = code_blocks(ROOT / "docs/checkpoints.md", "python")
    names = {"model": model, "rows": test.x}
    exec(code.replace("weights.safetensors", str(file)), names)
    labels = names["labels"].numpy()
    without = model(torch.from_numpy(test.x)).argmax(1).numpy()
    assert share(labels, test.y) == pytest.approx(expected, abs=1e-6)
    assert share(without, test.y) < expected - 0.05  # or the preprocessing would decide nothing
    one = blocklocal.load(digits)
    assert np.array_equal(one.predict(test.x.astype(np.float64)), labels)


def test_a_run_predicts_without_its_data(tmp_path: Path) -> None:
    data = save_arrays(tmp_path / "a.npz")
    words = ["data.kind=arrays", f"data.path={data}", "training.batch=8", "training.steps=8"]
    run = tmp_path / "run"
    assert cli.main(["train", *SMALL, *words, f"run.directory={run}"]) == 0
    x = np.load(data)["x_test"]
    data.unlink()
    found = blocklocal.load(run, "last").predict(x)
    accuracy = metrics_of(run)[-1]["block2/accuracy"]
    assert share(found, np.arange(40)[:9] % 3) == pytest.approx(accuracy)


def test_checkpoints_of_before_are_read_and_do_not_guess(
    capsys: Capture, digits: Path, tmp_path: Path
) -> None:
    run = RunDirectory.open(digits)
    (run.path / "fingerprints.json").rename(tmp_path / "fingerprints.json")
    kept = {}
    try:
        for manifest in run.path.glob("checkpoints/step-*/manifest.json"):
            kept[manifest] = manifest.read_bytes()
            content = unsealed(kept[manifest], str(manifest), "", (3,))
            old = {k: v for k, v in content.items() if k not in ("preprocessing", "fingerprints")}
            manifest.write_bytes(sealed({k: v for k, v in old.items() if k != "format"}, 2))
        one = blocklocal.load(run.path)
        assert one.preprocessing is None
        with pytest.raises(UserError, match="kept no preprocessing.*train it again, or call its"):
            one.predict(np.zeros((1, 1, 8, 8)))
        capsys.readouterr()
        assert cli.main(["eval", str(run.path)]) == 2
        assert "kept no preprocessing" in capsys.readouterr().err
        assert cli.main(["train", "--resume", str(run.path)]) == 2
        assert "written by a version that held out other rows: go on" in capsys.readouterr().err
        assert cli.main(["export", str(run.path), str(tmp_path / "w.safetensors")]) == 0
        assert "kept no preprocessing, so" in capsys.readouterr().err
        with safe_open(tmp_path / "w.safetensors", "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    finally:
        (tmp_path / "fingerprints.json").rename(run.path / "fingerprints.json")
        for manifest, content in kept.items():
            manifest.write_bytes(content)


def test_eval_uses_what_was_recorded(capsys: Capture, digits: Path, monkeypatch: Any) -> None:
    """Not what the rows would be normalised by now, by another version of the code."""
    expected = command(capsys, "eval", digits)
    monkeypatch.setattr("blocklocal.inference.check_data", lambda made, data: None)
    measured = load_dataset(make_config(RunDirectory.open(digits).config).data)
    other = measured.preprocessing.model_copy(update={"mean": (5.0,), "std": (0.01,)})
    changed = type(measured)(
        measured.name, measured.train, measured.validation, measured.test, other
    )
    monkeypatch.setattr("blocklocal.inference.load_dataset", lambda settings: changed)
    assert command(capsys, "eval", digits) == expected


def test_a_network_of_another_shape_is_refused(plain: Result, capsys: Capture) -> None:
    with pytest.raises(UserError):
        blocklocal.load(plain.directory, model=nn.Sequential(nn.Linear(8, 4)))
    assert "blocklocal.load(run, model=...)" in sentence(capsys, "eval", plain.directory)
