"""A run from the command line: what it writes, resuming, evaluating, exporting, timeline."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from blocklocal import cli
from blocklocal.config import load_config, make_config
from blocklocal.inference import evaluate_model, load_run
from blocklocal.observers import Progress
from blocklocal.preparation import prepare
from learning.data import load_dataset
from learning.networks import build_network
from learning.units import Chain, split, units_of
from orchestrator.events import Metrics
from orchestrator.plan import Plan
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL, command, listing, metrics_of, spans_of, state_of

Capture = pytest.CaptureFixture[str]
WORDS = (*SMALL, "rule.kind=bll", "schedule.kind=cosine", "network.dropout=0.1", "data.test=0.25")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train 40 steps; checkpoints after 8, 16, ..., 40."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    assert cli.main(["train", *WORDS, f"run.directory={path}"]) == 0
    return path


def _reported(run: Path, step: int = 39, split_name: str = "test") -> dict[str, float]:
    found = [r for r in metrics_of(run) if (r["step"], r["split"]) == (step, split_name)]
    assert len(found) == 1
    return found[0]


def _module(run: Path) -> nn.Module:
    """The original network with other weights than the run's."""
    config = make_config(RunDirectory.open(run).config)
    return build_network(config.network, (1, 8, 8), 10, seed=1234)


def test_what_a_run_leaves(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    files = {"config.yaml", "version.json", "state.json", "plan.json", "fingerprints.json"}
    assert names == files | {"metrics.jsonl", "spans.jsonl", "checkpoints", "lock", "report.md"}
    config = load_config(finished / "config.yaml")
    assert config == load_config(None, [*WORDS, f"run.directory={finished}"])
    version = json.loads((finished / "version.json").read_text())
    assert version["torch"] == torch.__version__ and version["package"] is not None
    plan = Plan.load(finished / "plan.json")
    assert [b.units for b in plan.blocks] == [("layer1",), ("layer2", "layer3", "head")]
    state = state_of(finished)
    assert (state["status"], state["steps"], state["error"]) == ("finished", 40, None)


def test_metrics_of_a_run(finished: Path) -> None:
    records = metrics_of(finished)
    train = [r for r in records if r["split"] == "train"]
    assert [r["step"] for r in train] == [*range(40)]
    for record in train:
        assert {"block1/loss", "block1/accuracy", "block2/loss", "block2/accuracy"} <= set(record)
    validated = [r["step"] for r in records if r["split"] == "validation"]
    assert validated == [7, 15, 23, 31, 39]
    assert [r["step"] for r in records if r["split"] == "test"] == [39]
    assert train[-1]["block2/loss"] < 0.85 * train[0]["block2/loss"]
    assert _reported(finished)["block2/accuracy"] > 0.4  # chance is 0.1


def test_spans_of_a_run(finished: Path) -> None:
    spans = spans_of(finished)
    assert [s["step"] for s in spans] == [*range(40)]
    assert all(s["ended"] > s["started"] for s in spans)


def test_checkpoints_of_a_run(finished: Path) -> None:
    checkpoints = RunDirectory.open(finished).checkpoints
    scores = {
        r["step"] + 1: r["block2/accuracy"]
        for r in metrics_of(finished)
        if r["split"] == "validation"
    }
    best = max(scores, key=lambda step: (scores[step], -step))
    assert (checkpoints.last, checkpoints.best) == (40, best)
    assert checkpoints.best_value == scores[best]
    assert checkpoints.steps() == sorted({best, 32, 40})
    assert set(checkpoints.load(40).state) == {"block1", "block2", "feedback1"}


class _Interrupted(Progress):
    """Presses Ctrl-C after step 25 was recorded."""

    def stepped(self, step: int, metrics: Metrics) -> None:
        super().stepped(step, metrics)
        if step == 25:
            raise KeyboardInterrupt


def test_resuming_gives_the_bits_of_an_undisturbed_run(
    capsys: Capture, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr("blocklocal.commands.train.Progress", _Interrupted)
        assert cli.main(["train", *WORDS, f"run.directory={path}"]) == 130
    captured = capsys.readouterr()
    how = f"go on with blocklocal train --resume {path}"
    assert captured.err == f"blocklocal: interrupted at step 24 of 40; {how}\n"
    state = state_of(path)
    assert (state["status"], state["steps"]) == ("stopped", 24)
    assert metrics_of(path)[-1]["step"] == 25  # beyond the checkpoint: resuming rewinds it
    assert RunDirectory.open(path).checkpoints.last == 24

    out = command(capsys, "train", "--resume", path)
    assert f"resuming {path} at step 24 of 40" in out
    assert (path / "metrics.jsonl").read_bytes() == (finished / "metrics.jsonl").read_bytes()
    assert state_of(path)["status"] == "finished"
    one, other = (RunDirectory.open(p).checkpoints.load(40).state for p in (path, finished))
    assert one.keys() == other.keys()
    for learner, tensors in one.items():
        assert tensors.keys() == other[learner].keys()
        for name, tensor in tensors.items():
            assert torch.equal(tensor, other[learner][name]), (learner, name)
    spans = [s["step"] for s in spans_of(path)]
    assert spans == [*range(40)]


def test_resuming_a_finished_run_trains_nothing(capsys: Capture, finished: Path) -> None:
    before = listing(finished)
    assert "at step 40 of 40" in command(capsys, "train", "--resume", finished)
    after = listing(finished)
    assert {name for name in before if before[name] != after[name]} <= {"lock"}


def test_what_is_reserved_may_change_on_resuming(finished: Path) -> None:
    run = RunDirectory.open(finished)
    config = load_config(None, ["engine.resources.cpus=0.25"], base=run.config)
    plan = prepare(config, plan=run.plan).plan
    assert [b.cpus for b in plan.blocks] == [0.25, 0.25] and plan.hash() == run.plan.hash()


def test_eval_repeats_what_training_reported(capsys: Capture, finished: Path) -> None:
    for name in ("test", "validation"):
        out = command(capsys, "eval", finished, "--split", name, "--checkpoint", "last")
        reported = _reported(finished, split_name=name)
        accuracy, loss = reported["block2/accuracy"], reported["block2/loss"]
        assert out == f"step 40  {name} accuracy {accuracy:.4%}  loss {loss:.6f}\n"


def test_the_best_checkpoint_is_the_default(
    capsys: Capture, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    checkpoints = RunDirectory.open(tmp_path / "run").checkpoints
    best = checkpoints.best
    assert best is not None
    kept = checkpoints.load(40)
    zeros = {k: {n: t * 0 for n, t in tensors.items()} for k, tensors in kept.state.items()}
    checkpoints.save(
        41,
        zeros,
        plan_hash=kept.plan_hash,
        rule=kept.rule,
        metrics=None,
        fingerprints=kept.fingerprints,
        preprocessing=kept.preprocessing,
    )
    checkpoints.mark(last=41)
    words = ["eval", tmp_path / "run", "--split", "validation"]
    accuracy = _reported(finished, best - 1, "validation")["block2/accuracy"]
    assert command(capsys, *words).startswith(f"step {best}  validation accuracy {accuracy:.4%}  ")
    assert command(capsys, *words) == command(capsys, *words, "--checkpoint", str(best))
    assert command(capsys, *words) != command(capsys, *words, "--checkpoint", "last")
    assert f"(step {best})\n" in command(capsys, "export", tmp_path / "run", tmp_path / "w")


def test_an_export_is_the_original_module(capsys: Capture, finished: Path, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    out = command(capsys, "export", finished, file, "--checkpoint", "last")
    assert out == f"wrote {file} (step 40)\n"
    model = _module(finished)
    model.load_state_dict(load_file(file), strict=True)
    config = make_config(RunDirectory.open(finished).config)
    loss, accuracy = evaluate_model(model, load_dataset(config.data), "test", config)
    reported = _reported(finished)
    assert accuracy == reported["block2/accuracy"]
    assert loss == pytest.approx(reported["block2/loss"], rel=1e-6)


def test_an_export_fits_another_partition(capsys: Capture, finished: Path, tmp_path: Path) -> None:
    command(capsys, "export", finished, tmp_path / "w", "--checkpoint", "last")
    weights = load_file(tmp_path / "w")
    whole = _module(finished)
    whole.load_state_dict(weights)
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    chains = [Chain(u) for u in split(units_of(_module(finished)), ["layer3", "head"])]
    h = x
    for chain in chains:
        chain.load_original_state(weights)
        h = chain.eval()(h)
    assert len(chains) == 3 and torch.equal(h, whole.eval()(x))


def test_float64_weights_are_evaluated_in_float64(capsys: Capture, tmp_path: Path) -> None:
    path = tmp_path / "double"
    short = ["training.steps=3", "precision.compute=float64", f"run.directory={path}"]
    command(capsys, "train", *SMALL, *short)
    run = RunDirectory.open(path)
    config, dataset, trained = load_run(run, 3)
    model = trained.model
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    loss, _ = evaluate_model(model, dataset, "test", config)
    assert loss == pytest.approx(_reported(path, 2)["block2/loss"], rel=1e-13)


def test_a_dry_run_writes_nothing(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*WORDS, f"tracking.experiment=a{'[x]' * 60}"]
    out = command(capsys, "train", *words, "--dry-run")
    assert listing(tmp_path) == {}
    text, _, table = out.partition("\n\n")
    assert make_config(yaml.safe_load(text)) == load_config(None, words)
    assert "layer2 .. head" in table


def test_runs_without_a_directory_go_below_runs(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text("run: {name: mine}\ntraining: {steps: 1}\n")
    out = command(capsys, "train", "run.yaml", *SMALL, "training.steps=2")
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("mine-20") and f"run directory: {run}\n" in out
    assert state_of(run)["steps"] == 2


def test_runs_of_one_second_get_directories_of_their_own(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("blocklocal.training.time.strftime", lambda form: "19700101-000000")
    for _ in range(3):
        command(capsys, "train", *SMALL, "training.steps=1")
    names = ["run-19700101-000000", "run-19700101-000000-2", "run-19700101-000000-3"]
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == names


def test_timeline(capsys: Capture, finished: Path) -> None:
    out = command(capsys, "timeline", finished)
    events = json.loads((finished / "trace.json").read_text())["traceEvents"]
    assert len([e for e in events if e.get("cat") == "training"]) == 40
    png = (finished / "timeline.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n") and len(png) > 5000
    assert out.startswith(f"wrote {finished / 'trace.json'} and timeline.png\n")
    assert "  all: idle " in out and "of the time" in out
    (finished / "trace.json").unlink()
    (finished / "timeline.png").unlink()
