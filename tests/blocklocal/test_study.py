"""Study files: expansion by hand, and one sentence for everything that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from blocklocal.compare.study import Combination, expand, load_study
from tests.blocklocal.helpers import refused
from tests.blocklocal.studies import TINY, write_study

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def combinations(path: Path, *words: str) -> list[Combination]:
    return expand(load_study(path), path, words)


def test_rules_on_networks_with_cuts(here: Path) -> None:
    path = write_study(
        here,
        networks={"small": ["network.widths=[5,5]"], "wide": {"network": {"widths": [9, 9, 9]}}},
        blocks={"two": ["blocks.at=[layer2]"], "one": {"blocks": {"at": []}}},
    )
    found = combinations(path)
    assert [c.key for c in found] == [
        (rule, network, blocks)
        for network in ("small", "wide")
        for blocks in ("two", "one")
        for rule in ("backprop", "local")
    ]
    last = found[-1].config(3)
    assert (last.rule.kind, last.blocks.count, last.training.seed) == ("local", 1, 3)
    assert last.network.model_dump()["widths"] == (9, 9, 9)
    assert found[-1].label == "local, wide, one"
    first = found[0].config(0)
    assert (first.rule.kind, first.blocks.at) == ("backprop", ("layer2",))
    assert (first.engine.kind, first.engine.resources.threads) == ("sequential", 1)
    assert not first.tracking.enabled


def test_counts_of_blocks_cut_the_same_way_in_every_run(here: Path) -> None:
    found = combinations(write_study(here, blocks=[1, 3], networks=None))
    assert [c.blocks for c in found] == ["1 blocks", "1 blocks", "3 blocks", "3 blocks"]
    config = found[-1].config(0)
    assert (config.blocks.at, config.blocks.count) == ("auto", 3)
    assert config.blocks.balance == "memory"
    told = combinations(write_study(here, blocks=[3]), "blocks.balance=parameters")
    assert told[0].config(0).blocks.balance == "parameters"


def test_later_words_win(here: Path) -> None:
    """Base, then the study's settings, the command line, and last what is compared."""
    (here / "bases").mkdir()
    base = {"engine": {"kind": "ray"}, "training": {"batch": 3, "steps": 9}, "optimizer": {"lr": 1}}
    (here / "bases/run.yaml").write_text(yaml.safe_dump(base))
    path = write_study(
        here,
        base="bases/run.yaml",
        rules={"backprop": ["rule.kind=backprop", "optimizer.lr=4"], "local": []},
    )
    ours, theirs = (c.config(0) for c in combinations(path, "optimizer.lr=2", "rule.kind=bll"))
    assert (ours.training.batch, ours.training.steps) == (8, 4)
    assert (ours.optimizer.lr, theirs.optimizer.lr) == (4, 2)
    assert (ours.rule.kind, theirs.rule.kind) == ("backprop", "bll")
    assert ours.engine.kind == "sequential"  # a run file for a cluster compares in one process
    assert combinations(path, "engine.kind=ray")[0].config(0).engine.kind == "ray"


def test_a_tree_lays_the_kind_first(here: Path) -> None:
    """Wherever it is written: it drops the settings of the kind before."""
    rule = {"head": {"width": 7, "kind": "conv"}, "kind": "local"}
    bernoulli = {"kind": "bll", "latent": {"kind": "bernoulli"}}
    path = write_study(
        here,
        settings=TINY["settings"] | {"rule": bernoulli},
        rules={"backprop": {"rule": {"latent": {"grid": 1}}}, "local": {"rule": rule}},
    )
    bll, local = (c.config(0).rule.model_dump() for c in combinations(path))
    assert (bll["latent"]["kind"], bll["latent"]["grid"]) == ("bernoulli", 1)
    assert (local["kind"], local["head"]["kind"], local["head"]["width"]) == ("local", "conv", 7)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nam": 1}, "study.yaml: unknown key nam: did you mean name?"),
        ({"xyz": 1}, "study.yaml: unknown key xyz: use name, title, "),
        ({"name": None}, "study.yaml: name is missing: add it to the study"),
        ({"name": "a/b"}, "study.yaml: name = 'a/b' is not possible: string should match"),
        ({"baseline": None}, "study.yaml: baseline is missing: add it to the study"),
        (
            {"baseline": "BP"},
            "study.yaml: baseline = 'BP' is not among the rules: name one of backprop, local",
        ),
        ({"rules": {}}, "study.yaml: rules = {} is not possible: dictionary should have at least"),
        ({"rules": {"backprop": 3}}, "study.yaml: rules = 3 is not possible: input should be"),
        ({"seeds": []}, "study.yaml: seeds = [] is not possible: tuple should have at least 1"),
        ({"seeds": [0, 1, 0]}, "study.yaml: seeds = [0, 1, 0] names one twice: leave it out"),
        ({"seeds": [-1]}, "study.yaml: seeds = -1 is not possible: input should be greater than"),
        ({"blocks": [2, 2]}, "study.yaml: blocks = [2, 2] names one twice: leave it out"),
        ({"metric": "f1"}, "study.yaml: metric = 'f1' is not possible: input should be 'auto', "),
        ({"workers": 0}, "study.yaml: workers = 0 is not possible: input should be greater"),
        ({"base": "no.yaml"}, "cannot read no.yaml (No such file or directory): give an existing"),
        ({"settings": ["lr"]}, "'lr' is not a setting: write dotted.key=value"),
        (
            {"rules": {"backprop": ["rule.kind=backprob"]}},
            "backprop: rule.kind = 'backprob' is unknown: use one of 'backprop', ",
        ),
        (
            {"networks": {"wide": {"network": {"widhts": [3]}}}},
            "backprop, wide: unknown setting network.widhts: did you mean network.widths?",
        ),
        (
            {"settings": TINY["settings"] | {"blocks": {"count": 2}}},
            "backprop: blocks.at = auto with blocks.balance = time cuts differently in every run: ",
        ),
        # Found by looking at the data and the network, of the last combination too.
        (
            {"blocks": {"two": [], "no": ["blocks.at=[layer9]"]}},
            "backprop, no: blocks.at names 'layer9', which is not a unit of this network: ",
        ),
        (
            {"rules": {"backprop": [], "local": ["data.path=no.npz"]}},
            "local: there is no file no.npz: give the path of an .npz file",
        ),
        (
            {"split": "validation", "rules": {"backprop": ["data.validation=0"]}},
            "split = 'validation' has no rows: use test or set data.validation",
        ),
    ],
)
def test_bad_studies(capsys: Capture, here: Path, changes: dict[str, Any], said: str) -> None:
    write_study(here, **changes)
    assert refused(capsys, "compare", "study.yaml").startswith(said)


def test_bad_files(capsys: Capture, here: Path) -> None:
    said = "cannot read no.yaml (No such file or directory): give an existing file"
    assert refused(capsys, "compare", "no.yaml") == said
    (here / "study.yaml").write_text("- a\n")
    said = "study.yaml holds list, not settings: write key: value"
    assert refused(capsys, "compare", "study.yaml") == said
    (here / "study.yaml").write_text("a: !!python/object:os.system\n")
    assert refused(capsys, "compare", "study.yaml").startswith("study.yaml is not valid YAML (")


def test_bad_words(capsys: Capture, here: Path) -> None:
    write_study(here)
    said = refused(capsys, "compare", "study.yaml", "optimiser.lr=1")
    assert said.startswith("backprop: unknown setting optimiser")
    said = refused(capsys, "compare", "study.yaml", "--workers", "0")
    assert said == "--workers = 0 is not possible: give 1 or more"
    said = refused(capsys, "compare", "study.yaml", "--report", "--dry-run")
    assert said == "--adopt, --report and --dry-run do not go together: give one of them"


def test_directories_of_something_else(capsys: Capture, here: Path) -> None:
    write_study(here)
    said = refused(capsys, "compare", "study.yaml", "--directory", ".")
    assert said == ". is not empty and holds no study (no runs/): choose another --directory"
    said = refused(capsys, "compare", "study.yaml", "--directory", "study.yaml")
    assert said == "study.yaml is not a directory: choose another --directory"
    said = refused(capsys, "compare", "study.yaml", "--directory", "study.yaml/x")
    assert said.startswith("cannot write study.yaml/x (Not a directory): choose another")
    (here / "other/runs").mkdir(parents=True)
    (here / "other/results.json").write_text('{"study": "other"}')
    said = refused(capsys, "compare", "study.yaml", "--directory", "other")
    assert said == "other holds the study 'other', not 'tiny': choose another --directory"


def test_a_report_of_nothing(capsys: Capture, here: Path) -> None:
    write_study(here)
    said = refused(capsys, "compare", "study.yaml", "--report")
    assert said == "studies/tiny has no runs of this study: run it first"


@pytest.mark.parametrize("name", ["cifar10", "cifar10-8-blocks", "digits"])
def test_the_examples(name: str) -> None:
    path = Path(__file__).parents[2] / f"examples/studies/{name}.yaml"
    found = combinations(path)
    assert load_study(path).name == name
    count = {"cifar10": 4, "cifar10-8-blocks": 8, "digits": 3}[name]
    assert all(c.config(0).blocks.count == count for c in found)
    made = [c.config(0) for c in found]
    settings = [one.rule.model_dump_json() + one.optimizer.model_dump_json() for one in made]
    assert len(set(settings)) == len(settings)
