"""What takes long is done once, only where a result depends on it, and said before it begins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from blocklocal import launch
from blocklocal.compare import command as compare
from blocklocal.config import load_config
from blocklocal.preparation import prepare
from learning.doing import LOGGER, doing, shown
from orchestrator import planning
from tests.blocklocal.helpers import SMALL
from tests.blocklocal.studies import write_study

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many units were timed, call by call."""
    return counted(monkeypatch, planning, "profile_units", lambda units, _: len(units))


def counted(
    monkeypatch: pytest.MonkeyPatch, module: Any, name: str, what: Callable[..., int]
) -> list[int]:
    """A list to which each call of a function adds a number."""
    calls: list[int] = []
    original = getattr(module, name)

    def counting(*args: Any, **options: Any) -> Any:
        calls.append(what(*args, **options))
        return original(*args, **options)

    monkeypatch.setattr(module, name, counting)
    return calls


NAMED = ("blocks.at=[layer2]", "network.widths=[5,5]")


@pytest.mark.parametrize(
    ("words", "profile", "calls"),
    [
        (NAMED, False, 0),
        ((*NAMED, "rule.kind=backprop"), False, 0),
        ((*NAMED, "engine.rebalance=0.5"), False, 1),  # a block is moved by its share
        (NAMED, True, 1),  # to be looked at
        (("blocks.at=auto", "blocks.count=2", "blocks.balance=memory"), False, 0),
        (("blocks.at=auto", "blocks.count=2", "blocks.balance=parameters"), False, 0),
        (("blocks.at=auto", "blocks.count=2", "blocks.balance=time"), False, 1),
    ],
)
def test_units_are_timed_only_where_a_result_depends_on_it(
    words: tuple[str, ...], profile: bool, calls: int, timed: list[int]
) -> None:
    prepare(load_config(None, [*SMALL, *words]), profile=profile)
    assert len(timed) == calls


def test_a_study_reads_its_data_once_and_times_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, timed: list[int], capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    rules = {name: [f"rule.kind={name}"] for name in ("backprop", "local", "bll")}
    study = compare.Comparison.open(write_study(tmp_path, rules=rules))
    from blocklocal import preparation

    read = counted(monkeypatch, preparation, "load_dataset", lambda _: 1)
    with shown():
        study.check(study.missing())
    assert (len(read), timed) == (1, [])
    assert capsys.readouterr().err.splitlines() == [f"... checking {name}" for name in rules]


def test_the_command_says_what_it_does_before_it_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(yaml.safe_dump({"engine": {"kind": "sequential"}}))
    heard: list[str] = []

    def imported(name: str) -> ModuleType:
        heard.append(capsys.readouterr().err)  # what was said before PyTorch is imported
        return import_module(name)

    monkeypatch.setattr(launch, "import_module", imported)
    words = [*SMALL, "blocks.at=auto", "blocks.balance=time", "training.steps=1"]
    assert launch.main(["train", "run.yaml", *words, "run.directory=run"]) == 0
    assert heard == ["... loading PyTorch\n"]
    assert capsys.readouterr().err.splitlines() == [
        "... timing the 4 units of the network",
        "... measuring cuts under the rule",
    ]
    assert not LOGGER.handlers
    assert launch.main(["--version"]) == 0
    assert capsys.readouterr().err == ""


def test_in_python_it_is_a_logger_s(caplog: pytest.LogCaptureFixture, capsys: Capture) -> None:
    with caplog.at_level(logging.INFO, LOGGER.name):
        doing("a thing")
    assert caplog.messages == ["a thing"] and capsys.readouterr().err == ""
