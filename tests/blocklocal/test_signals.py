"""SIGTERM, SIGHUP and Ctrl-C in this process: a run stops in order, and handlers are given back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from blocklocal import UserError, cli, fit, launch, signals
from blocklocal.signals import SIGNALS, handled
from learning.data import Dataset
from orchestrator.events import Metrics
from orchestrator.rundir import RunDirectory
from orchestrator.stopping import Stopping
from orchestrator.trainer import Observer
from tests.blocklocal.helpers import (
    SMALL,
    blobs,
    command,
    metrics_of,
    only_sentence,
    sentence,
    state_of,
)

Capture = pytest.CaptureFixture[str]
WORDS = [*SMALL, "run.directory=run"]
TERM, HUP, INT = SIGNALS


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class At(Observer):
    """Does something once a step is finished, or a split evaluated."""

    def __init__(self, step: int, act: Callable[[], object], split: str = "train") -> None:
        self._step, self._act, self._split = step, act, split

    def stepped(self, step: int, metrics: Metrics) -> None:
        self.evaluated(step, "train", metrics)

    def evaluated(self, step: int, split: str, metrics: Metrics) -> None:
        if (step, split) == (self._step, self._split):
            self._act()


def send(number: int) -> Callable[[], None]:
    return lambda: signal.raise_signal(number)


def small() -> tuple[nn.Module, Dataset]:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), blobs()


def fit_small(*observers: Observer, **sections: object) -> object:
    model, data = small()
    given = {
        "training": {"batch": 32, "steps": 20, "evaluate_every": 8},
        "engine": {"kind": "sequential", "resources": {"threads": 1}},
        "tracking": {"enabled": False},
        "run": {"directory": "run"},
    }
    return fit(model, data, blocks=["2"], observers=observers, **{**given, **sections})  # type: ignore[arg-type]


@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (HUP, 129), (INT, 130)])
def test_the_command_stops_with_its_state_and_resumes_with_the_same_bits(
    number: int, code: int, capsys: Capture, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(capsys, "train", *SMALL, "run.directory=whole")
    with monkeypatch.context() as patch:
        progress = At(12, send(number))
        for name in ("stepped", "evaluated"):
            patch.setattr(f"blocklocal.commands.train.Progress.{name}", _method(progress, name))
        assert cli.main(["train", *WORDS]) == code
    said = "interrupted" if number == INT else f"stopped by {signal.Signals(number).name}"
    path = here / "run"
    how = f"at step 13 of 40; go on with blocklocal train --resume {path}"
    assert capsys.readouterr().err == f"blocklocal: {said} {how}\n"
    state = state_of(path)
    assert (state["status"], state["steps"], state["error"]) == ("stopped", 13, None)
    assert [r["step"] for r in metrics_of(path) if r["split"] == "train"] == list(range(13))
    command(capsys, "train", "--resume", path)
    assert (path / "metrics.jsonl").read_bytes() == Path("whole/metrics.jsonl").read_bytes()
    assert state_of(path)["status"] == "finished"


def _method(observer: Observer, name: str) -> Callable[..., None]:
    return lambda _, *arguments: getattr(observer, name)(*arguments)


@pytest.mark.parametrize("where", ["train", "validation", "test"])
def test_while_an_evaluation_is_told_it_is_kept(where: str) -> None:
    step = 19 if where == "test" else 7
    if where == "test":  # nothing is left to do: the run has finished
        fit_small(At(step, send(TERM), where))
    else:
        with pytest.raises(SystemExit) as ended:
            fit_small(At(step, send(TERM), where))
        assert ended.value.code == 143
    assert state_of(Path("run"))["steps"] == RunDirectory.open("run").checkpoints.last == step + 1
    assert state_of(Path("run"))["status"] == ("finished" if where == "test" else "stopped")


def test_the_second_signal_ends_at_once(capsys: Capture) -> None:
    """Here between a step and its snapshot: steps after the last checkpoint are done again."""

    def twice() -> None:
        signal.raise_signal(TERM)
        signal.raise_signal(TERM)

    with pytest.raises(SystemExit) as ended:
        fit_small(At(12, twice))
    assert ended.value.code == 143
    assert (state_of(Path("run"))["status"], state_of(Path("run"))["steps"]) == ("stopped", 8)
    path = Path("run").absolute()
    how = f"at step 8 of 20; go on with blocklocal.fit(model, data, resume='{path}')"
    assert capsys.readouterr().err == f"blocklocal: stopped by SIGTERM {how}\n"


def test_without_a_boundary_in_time_the_run_ends() -> None:
    """As if a second signal had come."""

    def hang() -> None:
        signal.raise_signal(TERM)
        signal.pause()

    engine = {"kind": "sequential", "resources": {"threads": 1}, "patience": 1e-9}
    with pytest.raises(SystemExit) as ended:
        fit_small(At(12, hang), engine=engine)
    assert ended.value.code == 143
    assert (state_of(Path("run"))["status"], state_of(Path("run"))["steps"]) == ("stopped", 8)


def test_who_does_not_clean_up_in_time_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nothing that Python does is seen any more; a fork shows it."""
    child = os.fork()
    if child == 0:
        signals.CLEANING_SECONDS = 0.01
        try:
            with handled():
                try:
                    signal.raise_signal(TERM)
                finally:
                    signal.pause()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 143


def test_before_training_nothing_is_written(capsys: Capture, here: Path) -> None:
    (here / "mine.py").write_text(
        "import signal\ndef build():\n    signal.raise_signal(signal.SIGTERM)\n"
    )
    words = [w for w in WORDS if not w.startswith("network.")]
    custom = ["network.kind=custom", "network.factory=mine:build"]
    assert cli.main(["train", *words, *custom]) == 143
    assert capsys.readouterr().err == "blocklocal: stopped by SIGTERM\n"
    assert not Path("run").exists()


def test_handlers_of_the_caller_come_back() -> None:
    mine = lambda number, frame: None  # noqa: E731
    before = {number: signal.signal(number, mine) for number in (TERM, HUP)}
    seen: list[object] = []
    try:
        fit_small(At(0, lambda: seen.extend(map(signal.getsignal, SIGNALS))))
        assert len(set(seen)) == 1 and mine not in seen
        assert [signal.getsignal(n) for n in (TERM, HUP)] == [mine, mine]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(HUP, signal.SIG_IGN)
    try:
        fit_small(At(3, send(HUP)))
        assert signal.getsignal(HUP) is signal.SIG_IGN
    finally:
        signal.signal(HUP, before)
    assert state_of(Path("run"))["status"] == "finished"


def test_in_another_thread_training_works_and_handles_nothing() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    failed: list[BaseException] = []

    def train() -> None:
        try:
            fit_small(At(3, lambda: seen.extend(map(signal.getsignal, SIGNALS))))
        except BaseException as error:
            failed.append(error)

    seen: list[object] = []
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert failed == [] and seen == before
    assert state_of(Path("run"))["status"] == "finished"


def test_one_inside_the_other_is_the_same() -> None:
    with handled() as outer, handled() as inner:
        assert inner is outer
    with handled() as later:
        assert isinstance(later, Stopping) and later is not outer


NETWORK = """
import sys
from torch import nn
class Leaves(nn.Module):
    def forward(self, x):
        sys.exit("bye")
def build():
    sys.exit(3)
def leaving():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10), Leaves())
"""


@pytest.mark.parametrize(("factory", "what", "line"), [("build", "3", 8), ("leaving", "'bye'", 6)])
def test_code_of_the_user_that_exits_is_an_error_with_a_name(
    factory: str, what: str, line: int, capsys: Capture, here: Path
) -> None:
    (here / "leaves.py").write_text(NETWORK)
    sys.modules.pop("leaves", None)
    words = [w for w in WORDS if not w.startswith(("network.", "blocks."))]
    custom = ["network.kind=custom", f"network.factory=leaves:{factory}", "blocks.count=1"]
    said = sentence(capsys, "train", *words, *custom)
    assert said.startswith(f"SystemExit({what}) was raised in {here}/leaves.py, line {line}, which")


def test_an_observer_that_exits_fails_the_run() -> None:
    with pytest.raises(UserError, match=r"SystemExit\(4\) was raised in .*test_signals.py, line"):
        fit_small(At(9, lambda: sys.exit(4)))
    state = state_of(Path("run"))
    assert (state["status"], state["steps"]) == ("failed", 8)
    assert state["error"].startswith("UserError: SystemExit(4) was raised in")


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("words", [["eval", "run"], ["train", "engine.kind=sequential"]])
def test_a_signal_while_the_command_line_is_imported_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, words: list[str], number: int
) -> None:
    monkeypatch.setattr(launch, "import_module", lambda name: signal.raise_signal(number))
    assert launch.main(words) == 128 + number
    said = "interrupted" if number == INT else f"stopped by {signal.Signals(number).name}"
    assert only_sentence(capsys.readouterr().err) == said
