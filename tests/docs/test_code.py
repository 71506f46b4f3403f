"""The Python of the README runs; the rule of CONTRIBUTING trains."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

import blocklocal
from blocklocal.config import overlay
from learning.rules import RULES, Local
from learning.settings import AdamWSettings
from tests.docs.pages import CONTRIBUTING, QUICK, README, code_blocks
from tests.learning.helpers import learner_settings, make_engine, mlp, shards_of, snapshot, train


def test_readme_python_runs(
    directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = blocklocal.fit
    # All its steps: what the example prints must have learned.
    in_process = {k: v for k, v in QUICK.items() if not k.startswith("training.")}

    def quick_fit(*arguments: Any, **sections: Any) -> blocklocal.Result:
        sections = {n: dict(s) if isinstance(s, Mapping) else s for n, s in sections.items()}
        for key, value in in_process.items():
            overlay(sections, key.split("."), value)
        return fit(*arguments, **sections)

    monkeypatch.setattr(blocklocal, "fit", quick_fit)
    (example,) = [code for code in code_blocks(README, "python") if "blocklocal.fit" in code]
    exec(compile(example, str(README), "exec"), {"__name__": "example"})
    accuracy, run = capsys.readouterr().out.split()
    assert 0.75 < float(accuracy) <= 1  # of two classes
    assert (directory / run / "config.yaml").is_file()


@pytest.fixture
def smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The rule of CONTRIBUTING, imported from a file."""
    (code,) = code_blocks(CONTRIBUTING, "python")
    assert len(code.splitlines()) < 60
    path = tmp_path / "smoothed.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("smoothed", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "smoothed", module)
    spec.loader.exec_module(module)
    return module


def test_contributing_rule_trains(smoothed: ModuleType) -> None:
    rule = smoothed.Smoothed(smoothing=0.05)
    x, _ = shards_of()(0, 0)
    options = learner_settings(batch=8, steps=40, optimizer=AdamWSettings(lr=0.01))
    engine = make_engine(rule, mlp(0), ["1", "2"], x=x, settings=options)
    batch = shards_of()(0, 0)
    history = train(engine, range(40), lambda step, shard: batch)
    for block in ("block1", "block2", "block3"):
        assert history[-1][block]["loss"] < 0.7 * history[0][block]["loss"]


def test_contributing_rule_learns_from_the_next_block(smoothed: ModuleType) -> None:
    """Without smoothing it differs from `local` by the next block's loss, in all but the last."""
    x, _ = shards_of()(0, 0)
    states = []
    for rule in (smoothed.Smoothed(smoothing=0.0), Local()):
        engine = make_engine(rule, mlp(0), ["1", "2"], x=x, settings=learner_settings(batch=8))
        train(engine, range(1), shards_of())
        states.append(snapshot(engine))
    for block, same in (("block1", False), ("block2", False), ("block3", True)):
        mine, local = (
            {n: t for n, t in state[block].items() if n.startswith("model.")} for state in states
        )
        assert all((mine[n] == local[n]).all() for n in mine) is same
        heads = [{n: t for n, t in s[block].items() if n.startswith("auxiliary.")} for s in states]
        assert all((heads[0][n] == heads[1][n]).all() for n in heads[0])


def test_contributing_says_where_rules_are_listed() -> None:
    """In the file it names, under the names it gives; every listed rule has a kind of its own."""
    text = re.sub(r"\s+", " ", CONTRIBUTING.read_text())
    match = re.search(r"add the class to the union `(\w+)` in `([\w/.]+)`", text)
    assert match
    module = importlib.import_module(match[2].removesuffix("/__init__.py").replace("/", "."))
    assert get_args(getattr(module, match[1])) == RULES
    kinds = [get_args(rule.model_fields["kind"].annotation) for rule in RULES]
    assert all(len(kind) == 1 for kind in kinds) and len(set(kinds)) == len(RULES)
