"""`blocklocal compare` runs what is missing, keeps what is finished, and reports what failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from blocklocal import cli
from blocklocal.compare.command import TORCH
from blocklocal.compare.records import locked
from tests.blocklocal.helpers import SCRIPT, command, only_sentence, sentence
from tests.blocklocal.studies import TINY, kept, write_study

Capture = pytest.CaptureFixture[str]
DIRECTORY = Path("studies/tiny")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Give the records of the tiny study, by kind and file name."""
    path = tmp_path_factory.mktemp("finished")
    before = Path.cwd()
    os.chdir(path)
    try:
        write_study(path)
        assert cli.main(["compare", "study.yaml"]) == 0
        kinds = ("runs", "costs")
        return {k: {p.name: p.read_bytes() for p in (DIRECTORY / k).iterdir()} for k in kinds}
    finally:
        os.chdir(before)


@pytest.fixture
def study(here: Path, finished: dict[str, dict[str, bytes]]) -> Path:
    """Give the tiny study, finished, in the current directory."""
    for kind, files in finished.items():
        (DIRECTORY / kind).mkdir(parents=True)
        for name, data in files.items():
            (DIRECTORY / kind / name).write_bytes(data)
    return write_study(here)


def edit(name: str, **changes: Any) -> None:
    """Change top-level entries of a record."""
    path = DIRECTORY / "runs" / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_a_study_leaves_behind(capsys: Capture, here: Path) -> None:
    write_study(here)
    said = command(capsys, "compare", "study.yaml")
    for label in ("backprop, seed 0", "backprop, seed 1", "local, seed 0", "local, seed 1"):
        assert f"  {label}: accuracy " in said
    assert "6/6  " in said
    assert said.endswith("wrote studies/tiny/report.md\n")
    names = {"report.md", "results.json", "accuracy.png", "agreement.png", "runs", "costs"}
    assert {p.name for p in DIRECTORY.iterdir()} == names
    runs = list(kept(DIRECTORY).values())
    assert [(r["rule"], r["seed"]) for r in runs] == [
        ("backprop", 0), ("backprop", 1), ("local", 0), ("local", 1),
    ]  # fmt: skip
    for run in runs:
        assert [row["step"] for row in run["curve"]] == [2, 4]
        assert [row["epoch"] for row in run["curve"]] == [0.5, 1.0]
        last = run["curve"][-1]
        assert last["test/block2/accuracy"] == run["metrics"]["test/block2/accuracy"]
        assert last["train/block2/agreement"] == pytest.approx(1.0)
        losses = [row["validation/block2/loss"] for row in run["curve"]]
        assert run["best"]["validation/block2/loss"] == min(losses)
        assert "path" not in run["settings"]["data"]
        assert run["command"] == "blocklocal compare study.yaml"
        assert run["code"]["torch"] == TORCH
    assert runs[0]["curve"][0]["train/block1/agreement"] == pytest.approx(1.0)
    assert runs[2]["curve"][0]["train/block1/agreement"] < 1
    assert len(kept(DIRECTORY, "costs")) == 2
    assert not (here / "runs").exists()


def test_a_run_of_a_study_is_a_run(capsys: Capture, study: Path) -> None:
    """Watching its agreement does not change a bit of it."""
    words = [f"{section}.{key}={json.dumps(value)}" for section in ("data", "network", "blocks",
             "training") for key, value in TINY["settings"][section].items()]  # fmt: skip
    words += ["engine.kind=sequential", "engine.resources.threads=1", "tracking.enabled=false"]
    command(capsys, "train", *words, "rule.kind=local", "run.directory=alone")
    lines = Path("alone/metrics.jsonl").read_text().splitlines()
    test = next(r for line in lines if (r := json.loads(line))["split"] == "test")
    (run,) = [r for r in kept(DIRECTORY).values() if (r["rule"], r["seed"]) == ("local", 0)]
    theirs = {n: v for n, v in run["metrics"].items() if n.startswith("test/")}
    assert {f"test/{n}": v for n, v in test.items() if "/" in n} == theirs


def test_finished_runs_are_not_repeated(capsys: Capture, study: Path) -> None:
    before = kept(DIRECTORY)
    assert command(capsys, "compare", "study.yaml") == "wrote studies/tiny/report.md\n"
    assert command(capsys, "compare", "study.yaml", "--dry-run") == ""
    name = next(n for n in before if n.startswith("local-seed-1"))
    (DIRECTORY / "runs" / name).unlink()
    assert command(capsys, "compare", "study.yaml", "--dry-run") == "would run: local, seed 1\n"
    said = command(capsys, "compare", "study.yaml")
    assert said.splitlines()[-2].startswith("1/1  local, seed 1: accuracy ")
    after = kept(DIRECTORY)
    assert after[name]["metrics"] == before[name]["metrics"]
    assert {n: r for n, r in after.items() if n != name} == {
        n: r for n, r in before.items() if n != name
    }


def test_changed_settings_are_run_and_nothing_is_lost(capsys: Capture, study: Path) -> None:
    before = kept(DIRECTORY)
    said = command(capsys, "compare", "study.yaml", "training.steps=3", "--dry-run")
    assert said.count("would run: ") == 6
    command(capsys, "compare", "study.yaml", "training.steps=3")
    after = kept(DIRECTORY)
    assert len(after) == 8 and before.items() <= after.items()
    results = json.loads((DIRECTORY / "results.json").read_text())
    assert [made["command"] for made in results["made"]] == [
        "blocklocal compare study.yaml training.steps=3"
    ]


def test_what_does_not_matter_to_a_run(capsys: Capture, study: Path, here: Path) -> None:
    """Settings that a record does not have yet, where data lie, how a run is called."""
    for name, run in kept(DIRECTORY).items():
        settings = run["settings"]
        del settings["engine"]["rebalance"], settings["data"]["normalize"], settings["schedule"]
        settings["engine"]["window"] = 7  # the default has been another
        settings["run"]["name"] = "formerly"
        settings["engine"] |= {"transport": "direct", "recovery": {"max_failures": 3}}
        edit(name, settings=settings)
    (here / "mine.npz").rename("moved.npz")
    words = ("data.path=moved.npz", "tracking.experiment=other")
    assert command(capsys, "compare", "study.yaml", *words, "--dry-run") == ""


def test_what_does_matter_to_a_run(capsys: Capture, study: Path) -> None:
    names = list(kept(DIRECTORY))
    edit(names[0], code={"torch": "0.0"})
    settings = kept(DIRECTORY)[names[1]]["settings"]
    edit(names[1], settings=settings | {"gone": {"kind": 3}})
    edit(names[2], settings=settings | {"engine": settings["engine"] | {"resources": {}}})
    said = command(capsys, "compare", "study.yaml", "--dry-run")
    wanted = ["would run: backprop, seed 0", "would run: local, seed 0"]
    assert said.splitlines() == [*wanted, "would run: backprop, seed 1"]
    command(capsys, "compare", "study.yaml", "--report")  # whatever the version of torch
    rows = json.loads((DIRECTORY / "results.json").read_text())["tables"][0]["rows"]
    assert [list(row["values"]) for row in rows] == [["0"], ["1"]]


def test_weights_that_a_run_started_from_matter(capsys: Capture, study: Path) -> None:
    first, *_ = kept(DIRECTORY)
    settings = kept(DIRECTORY)[first]["settings"]
    edit(first, settings=settings | {"run": settings["run"] | {"start": "elsewhere"}})
    said = command(capsys, "compare", "study.yaml", "--dry-run")
    assert said.splitlines() == ["would run: backprop, seed 0"]


def test_damaged_records(capsys: Capture, study: Path) -> None:
    path = DIRECTORY / "runs" / next(iter(kept(DIRECTORY)))
    path.write_text("{")
    said = sentence(capsys, "compare", "study.yaml")
    assert said.startswith(f"{path} is damaged (")
    assert said.endswith("): delete it, and its run is repeated")
    path.write_text("{}")
    said = sentence(capsys, "compare", "study.yaml")
    assert said.startswith(f"{path} is damaged (it is no record of a run: no settings and code)")


def test_a_run_that_fails(capsys: Capture, here: Path) -> None:
    wild = ["optimizer.kind=sgd", "optimizer.lr=1e6", "rule.kind=backprop"]
    write_study(here, rules=TINY["rules"] | {"wild": wild}, seeds=[0])
    assert cli.main(["compare", "study.yaml"]) == 1
    said = capsys.readouterr()
    wild = only_sentence(said.err)
    assert wild.startswith("wild, seed 0: the loss of block 2 is ")
    assert "wild, seed 0: FAILED: the loss of block 2 is " in said.out
    assert {r["rule"] for r in kept(DIRECTORY).values()} == {"backprop", "local"}
    assert "| wild |  |  | 0 |  | 0 |" in (DIRECTORY / "report.md").read_text()
    assert cli.main(["compare", "study.yaml"]) == 1  # it is tried again, alone
    assert "1/1  wild, seed 0: FAILED" in capsys.readouterr().out


NETWORK = """
import multiprocessing, os
from torch import nn

class Odd(nn.Linear):
    def forward(self, x):
        if multiprocessing.parent_process() and {when}:
            {what}
        return super().forward(x)

def build():
    print("noise on the terminal")
    return nn.Sequential(nn.Linear(4, 5), Odd(5, 3))
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("os._exit(3)", "its process ended with code 3 and without a word"),
        ("raise LookupError('lost\\nit')", "LookupError: lost it"),
    ],
)
def test_a_process_that_dies(capsys: Capture, here: Path, what: str, said: str) -> None:
    code = NETWORK.format(when="not self.training", what=what)
    name = f"odd_{len(what)}"  # imported anew by each case
    (here / f"{name}.py").write_text(code)
    settings = TINY["settings"] | {
        "network": {"kind": "custom", "factory": f"{name}:build"},
        "blocks": {"at": ["1"]},
    }
    write_study(here, rules={"backprop": ["rule.kind=backprop"]}, seeds=[0], settings=settings)
    assert cli.main(["compare", "study.yaml"]) == 1
    captured = capsys.readouterr()
    assert only_sentence(captured.err) == f"backprop, seed 0: {said}"
    assert not (DIRECTORY / "report.md").exists()


def test_an_interrupt_keeps_what_is_finished(capsys: Capture, here: Path) -> None:
    long = TINY["settings"] | {"training": {"steps": 4000, "batch": 8}}
    rules = TINY["rules"] | {"long": {"rule": {"kind": "backprop"}, **long}}
    write_study(here, rules=rules, seeds=[0], workers=1)
    command = [str(SCRIPT), "compare", "study.yaml"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        finished_lines = (line for line in process.stdout if ": accuracy" in line)
        assert next(finished_lines) and next(finished_lines)
        assert len(kept(DIRECTORY)) == 2
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does on Ctrl-C
        _, error = process.communicate(timeout=600)
    assert process.returncode == 130
    assert only_sentence(error) == "interrupted; the same command goes on"
    assert psutil.wait_procs(children, timeout=600)[1] == []
    finished = kept(DIRECTORY)
    assert {r["rule"] for r in finished.values()} == {"backprop", "local"}
    write_study(here, rules=TINY["rules"], seeds=[0])
    assert cli.main(["compare", "study.yaml"]) == 0
    assert capsys.readouterr().out == "wrote studies/tiny/report.md\n"
    assert kept(DIRECTORY) == finished


def test_two_at_once(capsys: Capture, study: Path) -> None:
    with locked(DIRECTORY):
        said = sentence(capsys, "compare", "study.yaml")
    assert said.startswith("another blocklocal compare works in studies/tiny: wait until it ends")


def test_adopting_runs(capsys: Capture, study: Path, here: Path) -> None:
    """The format of runs from before there were studies: code and machine once, for all."""
    runs = list(kept(DIRECTORY).values())
    code = runs[0]["code"]
    old = [{"rule": "x", **{n: r[n] for n in ("settings", "metrics", "seconds")}} for r in runs]
    environment = {"command": "python old.py", "code": code, "processor": "P", "cores": 7}
    (here / "old.json").write_text(json.dumps({"environment": environment, "runs": old}))
    Path("other/runs").mkdir(parents=True)
    words = ("compare", "study.yaml", "--directory", "other", "--adopt", "old.json")
    said = command(capsys, *words)
    assert said.startswith("4 runs of old.json belong to this study, 4 of them new\n")
    adopted = list(kept(Path("other")).values())
    assert [(r["rule"], r["seed"]) for r in adopted] == [(r["rule"], r["seed"]) for r in runs]
    assert all((r["command"], r["cores"], r["code"]) == ("python old.py", 7, code) for r in adopted)
    assert "4 of them new" not in command(capsys, *words)
    said = command(capsys, "compare", "study.yaml", "--directory", "other", "--dry-run")
    assert said.splitlines() == ["would run: backprop, costs", "would run: local, costs"]


def test_adopting_something_else(capsys: Capture, study: Path, here: Path) -> None:
    words = ("compare", "study.yaml", "training.steps=9", "--directory", "new", "--adopt")
    said = "cannot read no.json (No such file or directory): give an existing file"
    assert sentence(capsys, *words, "no.json") == said
    (here / "a.json").write_text("[")
    assert sentence(capsys, *words, "a.json").startswith("a.json is not valid JSON (")
    (here / "a.json").write_text('[{"settings": {}}]')
    assert sentence(capsys, *words, "a.json").startswith("a.json holds something that is no run")
    (here / "a.json").write_text(json.dumps(list(kept(DIRECTORY).values())))
    said = sentence(capsys, *words, "a.json")
    assert said.startswith("no run of a.json has the settings of a run of tiny: give another")
    assert not Path("new").exists()
