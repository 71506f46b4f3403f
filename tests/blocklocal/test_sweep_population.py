"""Trials that take over from each other, and leave nothing in memory for the next."""

from __future__ import annotations

import gc
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from blocklocal.sweep_file import SweepFile
from blocklocal.sweep_outcome import best_tree
from blocklocal.sweep_runs import TrialRuns
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import command
from tests.blocklocal.sweeps import SMALL, assert_same_bits, write
from tuning.jobs import Job, Request
from tuning.life import Life
from tuning.records import Outcome, read_lineage
from tuning.sweep import read_outcomes
from tuning.trial import SweepTrial

pytestmark = pytest.mark.usefixtures("here")


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
    heard = trial(**config)  # Tune knows the last report, and not that it was the last
    (here / "heard").mkdir()
    (here / "heard/pointer.json").write_text(
        json.dumps({"trial": 1, "run": told["run"], "step": 24})
    )
    heard.load_checkpoint(str(here / "heard"))
    last = heard.step()
    assert last["done"] and last["step"] == 24
    assert last["validation/accuracy"] == told["validation/accuracy"]
    heard.cleanup()
    run = RunDirectory.open(here / "trials" / told["run"])
    assert [m["step"] for m in run.read_metrics() if m["split"] == "train"] == [*range(12, 24)]
    assert run.config["optimizer"]["lr"] == 0.02
    outcome = Outcome(1, {"optimizer.lr": 0.02}, "finished", run.path, [])
    Path("best.yaml").write_text(yaml.safe_dump(best_tree(file, outcome)))
    command(capsys, "train", "best.yaml", "run.directory=again")
    assert_same_bits(run, RunDirectory.open("again"))


@pytest.mark.usefixtures("no_fsync")
def test_a_trial_leaves_nothing_in_memory(here: Path) -> None:
    """The next trial may come into the same process: networks and data of the last are gone."""
    file = SweepFile.of(SMALL)
    (here / "trials").mkdir()
    job = Job(TrialRuns(file.base, 1.0, 1), here / "trials", {}, "validation/accuracy", 0.0)
    alive = []
    for number in range(3):
        request = Request(number, {"optimizer.lr": 0.01}, here / f"trials/{number}", None, 0)
        life = Life(job, request)
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
