"""`blocklocal tune`: sweeps of small runs, what they leave, and what is refused at once."""

from __future__ import annotations

import csv
import gc
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blocklocal.config import make_config
from blocklocal.sweep_checks import check_bundles, check_points, check_prepared, check_values
from blocklocal.sweep_file import SweepFile, varied
from blocklocal.sweep_runs import TrialRuns
from blocklocal.sweeping import best_tree
from learning.errors import UserError
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import command, refused
from tests.orchestrator.engines import CPUS, eventually, free_cpus
from tuning.records import Outcome, read_lineage
from tuning.searchers import known_points
from tuning.sweep import read_outcomes
from tuning.trial import Job, Request, SweepTrial, _Life

EXAMPLE = Path(__file__).parents[2] / "examples/sweep.yaml"
SMALL = {
    "run": {"name": "small"},
    "network": {"kind": "mlp", "widths": [16, 16]},
    "blocks": {"at": ["layer2"]},
    "engine": {"kind": "sequential", "resources": {"threads": 1}},
    "tracking": {"enabled": False},
    "training": {"steps": 24, "batch": 32, "evaluate_every": 6},
    "sweep": {"trials": 3, "parallel": 2, "directory": "swept"},
    "space": {"optimizer.lr": {"loguniform": [1e-3, 1e-1]}},
}


def write(tree: Any, **sections: Any) -> Path:
    """A sweep file in the current directory; sections are laid over those of a tree."""
    merged = {**tree}
    for name, section in sections.items():
        merged[name] = {**tree.get(name, {}), **section}
    path = Path("sweep.yaml")
    path.write_text(yaml.safe_dump(merged))
    return path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    return tmp_path / "there"


def table(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "trials.csv").open()))


def assert_same_bits(a: RunDirectory, b: RunDirectory) -> None:
    """Two runs have ended with the same tensors and measured the same on the way."""
    assert a.checkpoints.last == b.checkpoints.last is not None
    left, right = (r.checkpoints.load(r.checkpoints.last or 0).state for r in (a, b))
    assert left.keys() == right.keys()
    for learner in left:
        assert left[learner].keys() == right[learner].keys()
        for name, tensor in left[learner].items():
            assert torch.equal(tensor, right[learner][name]), (learner, name)
    assert a.read_metrics() == b.read_metrics()


# --- sweeps -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_a_sweep_of_actors_and_its_best_trial_again(capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of one and two blocks, in parallel; the best one trains again with the same bits."""
    path = write(
        SMALL,
        blocks={"at": "auto"},
        engine={"kind": "ray"},
        space={"blocks.count": {"grid": [1, 2]}},
        sweep={"trials": 4, "scheduler": {"kind": "asha", "reduction": 2}},
    )
    said = command(capsys, "tune", path)
    assert "4/4  trial " in said and "best: trial " in said
    swept = Path("swept")
    assert eventually(lambda: free_cpus() == CPUS)
    rows = table(swept)
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    assert {row["blocks.count"] for row in rows} == {"1", "2"}
    assert {row["status"] for row in rows} <= {"finished", "stopped"}
    for name in ("report.md", "best.yaml", "curves.png", "parallel.png", "sweep.yaml"):
        assert (swept / name).is_file()
    best = yaml.safe_load((swept / "best.yaml").read_text())
    assert best["blocks"]["at"] != "auto"
    number = int((swept / "best.yaml").read_text().split()[2].rstrip(":"))
    assert rows[number]["status"] == "finished"
    command(capsys, "train", swept / "best.yaml", "run.directory=again")
    trained = RunDirectory.open(swept / "trials" / rows[number]["run"])
    assert_same_bits(trained, RunDirectory.open("again"))


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_a_lost_trial_goes_on_and_a_failed_one_stops_nobody(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    network = {
        "kind": "custom",
        "factory": "tests.tuning.fragile:build",
        "arguments": {
            "waits_for": str(here / "swept/trials/0000/checkpoints/index.json"),
            "marker": str(here / "killed"),
        },
    }
    tree = {**SMALL, "network": network, "blocks": {"at": ["4"]}}
    path = write(
        {**tree, "space": {"optimizer.lr": {"grid": [0.01, 1e30]}}},
        optimizer={"kind": "sgd", "lr": 0.1},
        sweep={"trials": 2, "parallel": 1},
    )
    said = command(capsys, "tune", path)
    assert "trial 0000 was lost and goes on from its last checkpoint" in said
    assert (here / "killed").exists()
    lost, failed = table(Path("swept"))
    assert (lost["status"], lost["steps"]) == ("finished", "24")
    assert failed["status"] == "failed" and "the loss of block" in failed["why"]
    steps = [r["step"] for r in RunDirectory.open("swept/trials/0000").read_metrics()]
    assert sorted(set(steps)) == list(range(24))
    assert "trial 0001 failed: the loss of block" in Path("swept/report.md").read_text()
    # Undisturbed it would have learnt the same.
    command(capsys, "train", "swept/best.yaml", "run.directory=again")
    assert_same_bits(RunDirectory.open("swept/trials/0000"), RunDirectory.open("again"))


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_a_population_gets_better_and_its_best_trains_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Rates from useless to good: those that cannot learn take over from those that do."""
    path = write(
        {**SMALL, "space": {"optimizer.lr": {"loguniform": [1e-6, 1e-1]}}},
        optimizer={"kind": "sgd", "lr": 0.1},
        training={"steps": 40, "evaluate_every": 10},
        sweep={
            "trials": 4,
            "metric": "validation/loss",
            "scheduler": {
                "kind": "pbt",
                "mutate": ["optimizer.lr"],
                "quantile": 0.5,
                "resample": 0.0,  # rates come from those of the best alone
            },
        },
    )
    command(capsys, "tune", path)
    outcomes = read_outcomes(Path("swept"))
    assert [o.status for o in outcomes] == ["finished"] * 4
    taken = [o for o in outcomes if o.run is not None and "-from-" in o.run.name]
    assert taken, "nobody took over"
    alone = [RunDirectory.open(f"swept/trials/000{n}").config["optimizer"]["lr"] for n in range(4)]
    losses = [loss for o in outcomes if (loss := o.last("validation/loss")) is not None]
    assert len(losses) == 4
    before = []
    first = RunDirectory.open("swept/trials/0000").config
    for number, lr in enumerate(alone):
        run = {**first, "run": {"directory": f"alone{number}"}}
        Path("alone.yaml").write_text(yaml.safe_dump(run))
        command(capsys, "train", "alone.yaml", f"optimizer.lr={lr}")
        records = RunDirectory.open(f"alone{number}").read_metrics()
        before.append([m["block2/loss"] for m in records if m["split"] == "validation"][-1])
    assert statistics.fmean(losses) < statistics.fmean(before)
    assert max(losses) < max(before)
    now = [o.values["optimizer.lr"] for o in outcomes]
    assert max(now) / min(now) < max(alone) / min(alone)  # the useless ones have gone
    # A trial that took over: its last part again, from the state that it took.
    best = taken[0]
    assert best.run is not None
    config = RunDirectory.open(best.run).config
    assert Path(config["run"]["start"]).name == f"{best.run.name}.start"
    (Path("part.yaml")).write_text(
        yaml.safe_dump({**config, "run": {"start": config["run"]["start"], "directory": "again"}})
    )
    command(capsys, "train", "part.yaml")
    assert_same_bits(RunDirectory.open(best.run), RunDirectory.open("again"))
    steps = [e.steps for e in best.evaluations]
    assert steps == sorted(set(steps)) and steps[0] == 10 and steps[-1] == 40


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
@pytest.mark.parametrize(
    "sweep",
    [
        {"searcher": {"kind": "optuna", "startup": 2}, "scheduler": {"kind": "median"}},
        {"searcher": "random", "scheduler": {"kind": "hyperband", "reduction": 2}},
    ],
    ids=["optuna-median", "hyperband"],
)
def test_searchers_and_schedulers(capsys: pytest.CaptureFixture[str], sweep: Any) -> None:
    space = {
        "rule.kind": {"choice": ["local", "interlocking"]},
        "rule.reach": {"integer": [1, 2], "when": {"rule.kind": "interlocking"}},
        "optimizer.lr[2]": {"loguniform": [1e-3, 1e-1]},
    }
    path = write({**SMALL, "space": space}, sweep={**sweep, "trials": 4})
    command(capsys, "tune", path)
    rows = table(Path("swept"))
    assert len(rows) == 4 and {row["status"] for row in rows} <= {"finished", "stopped"}
    assert any(row["status"] == "finished" for row in rows)
    for row in rows:
        assert (row["rule.reach"] != "") == (row["rule.kind"] == "interlocking")
        config = RunDirectory.open(f"swept/trials/{row['run']}").config
        assert config["optimizer"]["lr"] == [0.001, float(row["optimizer.lr[2]"])]


@pytest.mark.usefixtures("ray_cluster", "no_fsync")
def test_mlflow_has_a_run_for_each_trial_inside_that_of_the_sweep(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    path = write(SMALL, tracking={"enabled": True}, sweep={"trials": 2})
    command(capsys, "tune", path)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{here}/mlflow.db")
    (experiment,) = [e for e in client.search_experiments() if e.name == "blocklocal"]
    runs = {r.info.run_name: r for r in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"swept", "0000", "0001"}
    parent = runs["swept"]
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} >= {
        "report.md",
        "best.yaml",
        "curves.png",
    }
    for number, row in enumerate(table(here / "swept")):
        run = runs[f"000{number}"]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["rule"] == "local" and len(run.data.tags["plan"]) == 16
        assert run.info.status == "FINISHED"
        assert float(run.data.params["optimizer.lr"]) == float(row["optimizer.lr"])
        loss = client.get_metric_history(run.info.run_id, "validation/block1/loss")
        assert [m.step for m in loss] == [6, 12, 18, 24]
        files = {a.path for a in client.list_artifacts(run.info.run_id)}
        assert {"config.yaml", "plan.json", "trace.json"} <= files


@pytest.mark.usefixtures("no_fsync")
def test_a_trial_leaves_nothing_in_memory(here: Path) -> None:
    """The next trial may come into the same process: networks and data of the last are gone."""
    file = SweepFile.of(SMALL)
    (here / "trials").mkdir()
    job = Job(TrialRuns(file.base, 1.0, 1), here / "trials", {}, "validation/accuracy", 0.0)
    alive = []
    for number in range(3):
        request = Request(number, {"optimizer.lr": 0.01}, here / f"trials/{number}", None, 0)
        life = _Life(job, request)
        told = life.next()
        if number == 1:  # stopped early
            life.end()
        while number != 1 and "done" not in told:
            told = life.next()
        life.end()
        del life
        gc.collect()
        alive.append(sum(isinstance(o, torch.nn.Module) for o in gc.get_objects()))
    assert alive[0] == alive[1] == alive[2]
    states = [RunDirectory.open(here / f"trials/{n}").state.status for n in range(3)]
    assert states == ["finished", "stopped", "finished"]


@pytest.mark.usefixtures("no_fsync")
def test_a_trial_takes_over_from_another(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As Tune has it done: it saves one trial and restores the other from that."""
    points = {number: {"optimizer.lr": lr} for number, lr in ((0, 0.01), (1, 1e-5))}
    file = SweepFile.of({**SMALL, "optimizer": {"kind": "sgd"}})
    (here / "trials").mkdir()
    metric = "validation/accuracy"
    runs = TrialRuns(file.base, 1.0, 1)
    job = Job(runs, here / "trials", points, metric, 0.0, hands_over=True)

    def trial(**config: Any) -> SweepTrial:
        made = object.__new__(SweepTrial)  # without an actor around it
        made.setup(config, job)
        return made

    def to_the_end(one: SweepTrial) -> dict[str, Any]:
        while "done" not in (told := one.step()):
            pass
        one.cleanup()
        return told

    donor, poor = trial(trial=0, like=0), trial(trial=1, like=1)
    assert [donor.step()["step"], donor.step()["step"], poor.step()["step"]] == [6, 12, 6]
    (here / "saved").mkdir()
    donor.save_checkpoint(str(here / "saved"))
    assert to_the_end(donor)["run"] == "0000"
    poor.cleanup()
    shutil.rmtree(here / "trials/0000/checkpoints/step-00000024")  # it needs nothing of the donor

    config = {"trial": 1, "like": 0, "optimizer.lr": 0.02}
    taken = trial(**config)
    taken.load_checkpoint(str(here / "saved"))
    assert taken.step()["step"] == 18
    taken.cleanup()
    again = trial(**config)  # its process was lost: it goes on where it was
    again.load_checkpoint(str(here / "saved"))
    told = to_the_end(again)
    assert told["step"] == 24 and told["run"].startswith("0001-from-0000-12-")
    steps = [e.steps for e in read_lineage(here / "trials", told["run"])]
    assert steps == [6, 12, 18, 24]
    run = RunDirectory.open(here / "trials" / told["run"])
    assert [m["step"] for m in run.read_metrics() if m["split"] == "train"] == [*range(12, 24)]
    assert run.config["optimizer"]["lr"] == 0.02
    outcome = Outcome(1, {"optimizer.lr": 0.02}, "finished", run.path, [])
    Path("best.yaml").write_text(yaml.safe_dump(best_tree(file, outcome)))
    command(capsys, "train", "best.yaml", "run.directory=again")
    assert_same_bits(run, RunDirectory.open("again"))


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"space": {"optimizer.lrr": {"uniform": [0, 1]}}}, "did you mean optimizer.lr?"),
        ({"space": {"optimizer.lr": {"uniform": [1, 0.1]}}}, "its min 1 above its max 0.1"),
        ({"space": {"optimizer.lr": {"uniform": [-1, 0.1]}}}, "optimizer.lr = -1.0 is not possib"),
        ({"space": {"rule.kind": {"choice": ["local", "bl"]}}}, "rule.kind = 'bl' is unknown"),
        (
            {
                "space": {
                    "rule.kind": {"choice": ["local", "bll"]},
                    "rule.feedback.scale": {"uniform": [1, 2]},
                }
            },
            "space varies rule.feedback.scale, which rule.kind = local does not have: add when: ",
        ),
        ({"space": {"optimizer.lr[3]": {"uniform": [0, 1]}}}, "optimizer.lr has 2 entries where"),
        ({"space": {"network.kind[1]": {"choice": ["mlp"]}}}, "= 'mlp', which is no list"),
        ({"space": {"blocks.count": {"integer": [1, 2]}}}, "names where to cut: set blocks.at"),
        ({"sweep": {"metric": "validation/acc"}}, "does not exist: did you mean validation/acc"),
        ({"sweep": {"metric": "validation/block3/loss"}}, "a trial may have 2 blocks"),
        ({"sweep": {"trials": None}}, "sweep.trials is missing"),
        ({"sweep": {"trails": 3}}, "unknown setting sweep.trails: did you mean sweep.trials?"),
        ({"data": {"validation": 0}}, "data.validation = 0 leaves no rows to choose a trial by"),
        ({"data": {"kind": "arrays", "path": "none.npz"}}, "none.npz"),
        ({"lanes": {"max": 2}}, "lanes.max = 2 in a sweep is more than lanes.min = 1"),
        ({"engine": {"rebalance": 0.5}}, "engine.rebalance = 0.5 in a sweep"),
        ({"blocks": {"at": "auto", "balance": "time"}}, "would cut trials differently"),
        ({"blocks": {"at": "auto", "count": 9}}, "9"),
        (
            {"engine": {"kind": "ray", "resources": {"cpus": 3}}},
            "the plan does not fit the cluster: 2 blocks need 6 CPUs and 0 GPUs (3 and 0 on one",
        ),
        (
            {"engine": {"kind": "ray", "resources": {"gpus": 0.5}}},
            "and 1 GPUs (",
        ),
        ({"tracking": {"enabled": True, "uri": "sqlite:////proc/x/y.db"}}, "cannot track with"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence_and_nothing_is_written(
    capsys: pytest.CaptureFixture[str], sections: dict[str, Any], said: str
) -> None:
    tree = {**SMALL, "space": sections.pop("space", SMALL["space"])}
    path = write(tree, **sections)
    assert said in refused(capsys, "tune", path)


def test_wrong_words(capsys: pytest.CaptureFixture[str]) -> None:
    path = write(SMALL)
    assert "needs a sweep file" in refused(capsys, "tune")
    assert "needs a sweep file" in refused(capsys, "tune", "optimizer.lr=1")
    assert "changes the space" in refused(capsys, "tune", path, "space.optimizer.lr=1")
    assert "--dry-run does not go with" in refused(capsys, "tune", "--resume", "x", "--dry-run")
    assert "is no sweep (no sweep.yaml)" in refused(capsys, "tune", "--resume", "there")
    assert "leave 'a=1' out" in refused(capsys, "tune", "a=1", "--resume", "there")
    Path("swept").mkdir()
    Path("swept/mine").touch()
    assert "exists and is not an empty directory" in refused(capsys, "tune", path)


@pytest.mark.usefixtures("ray_cluster")
def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    path = write(SMALL)
    said = command(capsys, "tune", path, "--dry-run", "sweep.trials=2", "training.batch=16")
    assert "batch: 16" in said
    assert said.count("trial 000") == 2
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["sweep.yaml"]


# --- configurations ---------------------------------------------------------------------------


def test_the_example_is_right() -> None:
    file = SweepFile.read(EXAMPLE)
    points = known_points(file.settings, file.space)
    assert len(points) == 24
    checked = check_values(file)
    check_points(file, points.values())
    assert {c.rule.kind for _, c in checked} == {"local", "bll", "interlocking", "backprop"}
    length = check_prepared(checked[:1])
    assert length.steps > 3 * length.every


def test_values_are_laid_over_the_base_kinds_first_and_entries_last() -> None:
    base = make_config({"rule": {"kind": "local"}}).model_dump(mode="json")
    values = {"rule.feedback.kind": "direct", "optimizer.lr[2]": 0.5, "rule.kind": "bll"}
    config = varied(base, values).model_dump()
    assert config["rule"]["feedback"]["kind"] == "direct"
    assert config["optimizer"]["lr"] == (0.001, 0.5)


def test_a_trial_reserves_a_bundle_for_each_block_of_each_lane() -> None:
    def bundles(**engine: Any) -> list[dict[str, float]]:
        tree = {"engine": engine, "blocks": {"at": ["layer2", "layer3"]}}
        lanes = {"min": 2, "max": 2} if "lanes" in engine else {"min": 1, "max": 1}
        engine.pop("lanes", None)
        base = make_config({**tree, "lanes": lanes, "training": {"shards": 2}})
        return TrialRuns(base.model_dump(mode="json"), cpus=1.5, cores=1).bundles({})

    assert bundles() == [{}, *[{"CPU": 0.5}] * 3]
    assert bundles(lanes=2) == [{}, *[{"CPU": 0.25}] * 6]
    third = {"gpus": 1 / 3, "cpus": 1}
    assert bundles(resources=third) == [{}, *[{"CPU": 1.0, "GPU": 1 / 3}] * 3]
    assert bundles(kind="sequential", resources={"threads": 1}) == [{"CPU": 1.0}]


@pytest.mark.usefixtures("ray_cluster")
def test_a_trial_that_fits_no_node_is_refused() -> None:
    base = make_config({"engine": {"resources": {"cpus": CPUS + 1}}, "blocks": {"at": []}})
    runs = TrialRuns(base.model_dump(mode="json"), cpus=CPUS, cores=1)
    with pytest.raises(UserError, match=rf"{CPUS + 1} CPUs and 0 GPUs.* nodes have {CPUS} and 0"):
        check_bundles(runs, [{}])
