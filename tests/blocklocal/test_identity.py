"""Whatever a run is gone on with, it is what the run was made of, or the difference is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from blocklocal import UserError, fit
from learning.data import Dataset, arrays_dataset
from learning.yaml_files import read_yaml
from orchestrator.checkpoint_reader import Checkpoint
from orchestrator.fingerprints import Fingerprints
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL, command, listing, refused, save_arrays

pytestmark = pytest.mark.usefixtures("no_fsync")
Capture = pytest.CaptureFixture[str]
State = dict[str, dict[str, Tensor]]
STEPS = 6


def _arrays() -> list[np.ndarray]:
    random = np.random.default_rng(7)
    y = np.arange(200) % 4
    x = (random.normal(size=(4, 8))[y] * 3 + random.normal(size=(200, 8))).astype(np.float32)
    return [x[:160], y[:160], x[160:], y[160:]]


def _network(activation: type[nn.Module] = nn.ReLU, dropout: float = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Linear(8, 16), activation(), nn.Dropout(dropout), nn.Linear(16, 4)
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `fit`, to be copied."""
    path = tmp_path_factory.mktemp("made") / "run"
    fit(
        _network(),
        arrays_dataset(*_arrays()),
        blocks=["3"],
        training={"batch": 32, "steps": STEPS, "evaluate_every": 3},
        engine={"kind": "sequential", "resources": {"threads": 1}},
        tracking={"enabled": False},
        run={"directory": path},
    )
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "lock").touch()
    return tmp_path / "run"


def _refused(run: Path, data: Dataset | None = None, model: nn.Module | None = None) -> str:
    """Why the run cannot be made longer; it stays as it is."""
    before = {k: v for k, v in listing(run).items() if k != "lock"}
    with pytest.raises(UserError) as caught:
        fit(
            model or _network(),
            data or arrays_dataset(*_arrays()),
            resume=run,
            training={"steps": 2 * STEPS},
        )
    assert {k: v for k, v in listing(run).items() if k != "lock"} == before
    assert len(str(caught.value)) < 500 and "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_untouched_goes_on(run: Path) -> None:
    fit(_network(), arrays_dataset(*_arrays()), resume=run, training={"steps": 2 * STEPS})
    assert RunDirectory.open(run).state.steps == 2 * STEPS


def _flipped(x: np.ndarray, y: np.ndarray, x2: np.ndarray, y2: np.ndarray) -> list[np.ndarray]:
    return [x, (y + 1) % 4, x2, y2]


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (_flipped, "train labels"),
        (lambda x, y, x2, y2: [x, y, x2, (y2 + 1) % 4], "test labels"),
        (lambda x, y, x2, y2: [x[::-1].copy(), y[::-1].copy(), x2, y2], "train rows"),
        (lambda x, y, x2, y2: [x[:-1], y[:-1], x2, y2], "train rows"),
        (lambda x, y, x2, y2: [x * 2, y, x2, y2], "train rows"),
        (lambda x, y, x2, y2: [x, y, x2 + 1, y2], "test rows"),
        (lambda x, y, x2, y2: [x, y, x2.astype(np.float64) + 1e-3, y2], "test rows"),
        (lambda x, y, x2, y2: [x + 0.001, y, x2, y2], "mean"),
    ],
)
def test_other_data_are_refused(
    run: Path, change: Callable[..., list[np.ndarray]], parts: str
) -> None:
    said = _refused(run, arrays_dataset(*change(*_arrays())))
    assert said.startswith(f"{run} was trained with other data (") and parts in said


@pytest.mark.parametrize(
    ("more", "part"),
    [({"normalize": False}, "mean"), ({"validation": 0.2}, "train rows"), ({"classes": 5}, "")],
)
def test_other_preparation_is_refused(run: Path, more: dict[str, Any], part: str) -> None:
    said = _refused(run, arrays_dataset(*_arrays(), **more))
    assert said.startswith(f"{run} was trained with other data (") and part in said


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (_network(nn.Tanh), "unit 1 is Tanh() in this network and ReLU() in "),
        (_network(dropout=0.2), "unit 2 is Dropout(p=0.2, inplace=False) in this network and "),
    ],
)
def test_another_network_of_the_same_tensors_is_refused(
    run: Path, model: nn.Module, said: str
) -> None:
    assert _refused(run, model=model).startswith(said)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("lr: 0.001", "lr: 0.1", "optimizer.lr = 0.1 and the run was made with 0.001"),
        ("seed: 0", "seed: 1", "training.seed = 1 and the run was made with 0"),
        ("batch: 32", "batch: 16", "training.batch = 16 and the run was made with 32"),
        ("threads: 1", "threads: 2", "engine.resources.threads = 2 and the run was made with 1"),
        ("kind: constant", "kind: cosine", "schedule.kind = cosine and the run was made with"),
        (
            "  kind: adamw\n  lr: 0.001\n  betas:\n  - 0.9\n  - 0.999\n  eps: 1.0e-08\n",
            "  kind: sgd\n  lr: 0.001\n",
            "optimizer.kind = sgd and the run was made with adamw",
        ),
        (f"steps: {STEPS}\n", "steps: 30\n", ""),
    ],
)
def test_an_edited_configuration_is_refused(run: Path, old: str, new: str, key: str) -> None:
    file = run / "config.yaml"
    text = file.read_text()
    assert old in text, text
    file.write_text(text.replace(old, new))
    if key:
        assert _refused(run).startswith(f"{file} has {key}")
        return
    with pytest.raises(UserError, match="training.steps = 30 and the run was made with 6: write"):
        fit(_network(), arrays_dataset(*_arrays()), resume=run)


def test_an_edited_plan_is_refused(run: Path) -> None:
    text = (run / "plan.json").read_text()
    (run / "plan.json").write_text(text.replace('"3"', '"2"').replace('"2"\n', '"3"\n', 1))
    assert _refused(run)
    plan = RunDirectory.open(run)
    assert plan.fingerprints is not None


def _saved(run: Path, state: State, told: Fingerprints | None, step: int = STEPS) -> None:
    checkpoints = RunDirectory.open(run).checkpoints
    kept = checkpoints.manifest(step)
    checkpoints.save(
        step,
        state,
        plan_hash=kept.plan_hash,
        rule=kept.rule,
        metrics=kept.metrics,
        fingerprints=told,
        preprocessing=kept.preprocessing,
    )


def _loaded(run: Path, step: int = STEPS) -> Checkpoint:
    return RunDirectory.open(run).checkpoints.load(step)


def _without(state: State, part: str) -> State:
    return {k: {n: t for n, t in s.items() if not n.startswith(part)} for k, s in state.items()}


def _with(state: State, learner: str, name: str, tensor: Tensor) -> State:
    return {**state, learner: {**state[learner], name: tensor}}


RESEALED: dict[str, tuple[Callable[[State], State], str]] = {
    "no optimizer": (lambda s: _without(s, "optimizer."), "no state of the optimizer for block1"),
    "a missing weight": (
        lambda s: _without(s, "model.0.weight"),
        "0.weight is torch.float32 of shape (16, 8) in this network and missing in ",
    ),
    "a missing moment": (
        lambda s: _without(s, "optimizer.0.weight.exp_avg_sq"),
        "optimizer.0.weight.exp_avg_sq of block1 is ",
    ),
    "no auxiliary network": (lambda s: _without(s, "auxiliary."), "auxiliary."),
    "no block": (lambda s: {"block2": s["block2"]}, "block1 is not in the checkpoint"),
    "another type": (
        lambda s: _with(s, "block1", "model.0.weight", s["block1"]["model.0.weight"].half()),
        "0.weight is torch.float32 of shape (16, 8) in this network and torch.float16 of",
    ),
    "another shape": (
        lambda s: _with(s, "block1", "model.0.weight", torch.zeros(16, 9)),
        "0.weight has shape (16, 8) in this network and (16, 9) in ",
    ),
    "one more": (
        lambda s: _with(s, "block1", "model.9.bias", torch.zeros(1)),
        "9.bias is missing in this",
    ),
}


@pytest.mark.parametrize("name", RESEALED)
def test_a_checkpoint_that_was_sealed_anew_is_refused(run: Path, name: str) -> None:
    change, said = RESEALED[name]
    kept = _loaded(run)
    state, told = change(kept.state), kept.fingerprints
    assert told is not None
    # Its fingerprints made anew, too: the network and the optimizer tell.
    _saved(run, state, told.of(state))
    assert said in _refused(run)
    # With those of before the checkpoint is damaged, and the one before it counts.
    _saved(run, state, told)
    with pytest.raises(UserError, match="are not those that .* tells"):
        _loaded(run)
    # Without any it is not the run's.
    _saved(run, state, None)
    assert "checkpoint 6 of " in (text := _refused(run)) and "has no fingerprints" in text


def test_a_checkpoint_of_another_run_is_refused(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fit(
        _network(),
        arrays_dataset(*_flipped(*_arrays())),
        blocks=["3"],
        training={"batch": 32, "steps": STEPS, "evaluate_every": 3},
        engine={"kind": "sequential", "resources": {"threads": 1}},
        tracking={"enabled": False},
        run={"directory": other},
    )
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(other / "checkpoints", run / "checkpoints")
    assert f"checkpoint 6 and {run} differ in the data, train " in _refused(run)


def test_the_manifests_tell_what_the_records_do_not(run: Path) -> None:
    (run / "fingerprints.json").unlink()
    data = arrays_dataset(*_flipped(*_arrays()))
    assert "was trained with other data (train " in _refused(run, data)
    file = run / "config.yaml"
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.1"))
    assert "has optimizer.lr = 0.1 and the run was made with 0.001" in _refused(run)


def test_runs_without_fingerprints_go_on_with_a_warning(run: Path, capsys: Capture) -> None:
    (run / "fingerprints.json").unlink()
    for step in (3, STEPS):
        _saved(run, _loaded(run, step).state, None, step)
    capsys.readouterr()
    data = arrays_dataset(*_arrays())
    fit(_network(), data, resume=run, training={"steps": 2 * STEPS})
    said = capsys.readouterr().err
    assert said.startswith(f"blocklocal: warning: {run} was made by a version that kept no finge")
    assert said.count("\n") == 1
    # What cannot be compared is not vouched for later.
    assert RunDirectory.open(run).fingerprints is None
    assert _loaded(run, 2 * STEPS).fingerprints is None
    with pytest.raises(UserError, match="was made with optimizer.lr = 0.001 and cannot go on"):
        fit(_network(), data, resume=run, optimizer={"lr": 1.0})


# ---- eval, export and starting, with a run of files ----


@pytest.fixture(scope="module")
def filed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with x.npz and a run on it."""
    from blocklocal import cli

    here = tmp_path_factory.mktemp("filed")
    save_arrays(here / "x.npz")
    words = ["data.kind=arrays", f"data.path={here / 'x.npz'}", "training.batch=8"]
    more = ["training.steps=6", "training.evaluate_every=3", f"run.directory={here / 'run'}"]
    assert cli.main(["train", *SMALL, *words, *more]) == 0
    return here


@pytest.fixture
def there(filed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that directory, in which the data have been moved along."""
    shutil.copytree(filed, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    file = Path("run/config.yaml")
    file.write_text(file.read_text().replace(str(filed), str(tmp_path / "copy")))
    (tmp_path / "copy" / "run" / "lock").touch()
    return tmp_path / "copy"


def _change_labels(path: Path) -> None:
    with np.load(path) as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    changed["y_train"] = changed["y_train"][::-1].copy()
    changed["y_test"] = changed["y_test"][::-1].copy()
    np.savez(path, **changed)


def test_moved_data_are_the_same_data(capsys: Capture, there: Path) -> None:
    command(capsys, "eval", "run")
    command(capsys, "train", "--resume", "run", "training.steps=9")
    shutil.move("x.npz", "y.npz")
    command(capsys, "train", "--resume", "run", f"data.path={there / 'y.npz'}", "training.steps=12")


@pytest.mark.parametrize("words", [("eval", "run"), ("train", "--resume", "run")])
def test_a_changed_file_is_refused(capsys: Capture, there: Path, words: tuple[str, ...]) -> None:
    _change_labels(Path("x.npz"))
    said = refused(capsys, *words)
    assert said.startswith(f"{there / 'run'} was trained with other data (train labels")


def test_other_data_are_evaluated_when_that_is_said(capsys: Capture, there: Path) -> None:
    own = command(capsys, "eval", "run", "--checkpoint", "last")
    shutil.copy("x.npz", "y.npz")
    _change_labels(Path("y.npz"))
    other = command(capsys, "eval", "run", "data.path=y.npz", "--checkpoint", "last")
    note, result = other.splitlines()
    assert result != own.rstrip() and note.startswith("on other data than run was trained with")
    said = refused(capsys, "eval", "run", "optimizer.lr=1")
    assert said == "'optimizer.lr=1' does not say which data: data.key=value settings do"
    save_arrays(Path("y.npz"), classes=5)
    assert "5 classes and the network knows 3" in refused(capsys, "eval", "run", "data.path=y.npz")


@pytest.mark.parametrize("words", [("eval", "run"), ("export", "run", "weights")])
def test_a_swapped_checkpoint_is_neither_evaluated_nor_exported(
    capsys: Capture, there: Path, words: tuple[str, ...]
) -> None:
    kept = _loaded(Path("run"))
    assert kept.fingerprints is not None
    other = {**kept.fingerprints.configuration, "optimizer.lr": 0.7}
    told = kept.fingerprints.model_copy(update={"configuration": other})
    _saved(Path("run"), kept.state, told)
    said = refused(capsys, *words, "--checkpoint", "last")
    assert "differ in the settings, optimizer.lr (there 0.7, in the run 0.01): restore it" in said
    _saved(Path("run"), kept.state, None)
    assert "has no fingerprints" in refused(capsys, *words, "--checkpoint", "last")


def test_an_edited_configuration_is_not_evaluated(capsys: Capture, there: Path) -> None:
    file = Path("run/config.yaml")
    file.write_text(file.read_text().replace("normalize: true", "normalize: false"))
    assert "config.yaml has data.normalize = false and" in refused(capsys, "eval", "run")
    assert read_yaml(file, 10**6)


BEGUN = ("training.batch=8", "training.steps=12", "training.evaluate_every=3", "run.directory=new")


def test_a_run_begins_on_the_data_of_the_other_or_says_so(
    capsys: Capture, there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blocklocal import cli

    words = [*SMALL, "data.kind=arrays", "data.path=x.npz", *BEGUN, "run.start=run/checkpoints"]
    shutil.copy("x.npz", "y.npz")
    _change_labels(Path("y.npz"))
    assert cli.main(["train", *words, "data.path=y.npz", "run.directory=other"]) == 0
    error = capsys.readouterr().err
    assert "was trained on other data than this run (train labels" in error
    config = Path("run/config.yaml")
    kept = _loaded(Path("run"))
    assert kept.fingerprints is not None and config.exists()
    # A run of these very settings, whose file has changed since.
    paths = {**kept.fingerprints.configuration, "data.path": str(there / "x.npz")}
    _saved(Path("run"), kept.state, kept.fingerprints.model_copy(update={"configuration": paths}))
    shutil.copy("y.npz", "x.npz")
    said = refused(capsys, "train", *words)
    assert "was trained on other data (train labels" in said and "settings of data are the" in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer={kind: sgd, lr: 0.1}", "was made with optimizer.kind = adamw and this run has"),
        ("network.widths=[16,16,17]", "has shape (3, 17) in this network and (3, 16) in "),
    ],
)
def test_a_run_does_not_begin_with_a_state_that_does_not_fit(
    capsys: Capture, there: Path, word: str, said: str
) -> None:
    words = [*SMALL, "data.kind=arrays", "data.path=x.npz", *BEGUN, "run.start=run/checkpoints"]
    if "network" in word:
        words = [w for w in words if not w.startswith("network.widths")]
    text = refused(capsys, "train", *words, word)
    assert said in text
