"""Progress: plain lines, the live table of a terminal, and the closing table."""

from __future__ import annotations

import re
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from actors.operations import Span
from blocklocal import observers
from blocklocal.commands import terminal, train
from blocklocal.observers import Progress
from orchestrator.events import Changed, Metrics
from orchestrator.incidents import Incident
from tests.blocklocal.helpers import SMALL, command

METRICS: Metrics = {
    "block1": {"loss": 1.25, "accuracy": 0.5},
    "block2": {"loss": 0.75, "accuracy": 0.875},
    "feedback1": {"loss": 3.5},
}


class _Clock:
    """Stands still until it is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(observers, "time", clock)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> _Clock:
    return _Clock(monkeypatch)


def _progress(start: int, steps: int, **console: bool) -> tuple[Progress, StringIO]:
    file = StringIO()
    return Progress(Console(file=file, width=100, **console), start, steps), file


def _spans() -> list[Span]:
    """100 ns, of which 30 waited and 10 blocked: idle 40%."""
    return [Span("F", 0, 0, 1000, 1060, 30, 0), Span("U", 0, 0, 1060, 1100, 0, 10)]


def test_a_plain_line(clock: _Clock) -> None:
    progress, file = _progress(0, 3)
    with progress:
        progress.worked("block1", _spans())
        progress.worked("block2", [])
        progress.stepped(0, METRICS)
    assert file.getvalue() == (
        "step 1/3  0.0 steps/s  block1 loss 1.250 accuracy 50.0%  "
        "block2 loss 0.750 accuracy 87.5%  idle: block1 40%\n"
    )


def test_plain_lines_come_every_five_seconds_and_at_the_end(clock: _Clock) -> None:
    progress, file = _progress(0, 100)
    with progress:
        for step in range(100):
            progress.stepped(step, METRICS)
            clock.now += 0.25
    lines = file.getvalue().splitlines()
    steps = [int(line.split()[1].partition("/")[0]) for line in lines]
    assert steps == [1, 21, 41, 61, 81, 100]
    assert all("  4.0 steps/s  " in line for line in lines[1:])


def test_the_rate_counts_what_this_process_did(clock: _Clock) -> None:
    progress, file = _progress(500, 600)
    with progress:
        for step in range(500, 520):
            progress.stepped(step, METRICS)
            clock.now += 0.5
        clock.now -= 0.5  # the last step has just ended
        assert progress.rate() == pytest.approx(2.0)
    assert file.getvalue().startswith("step 501/600  ")


def test_evaluations_have_a_line(clock: _Clock) -> None:
    progress, file = _progress(0, 3)
    blocks = {name: METRICS[name] for name in ("block2", "block1")}
    with progress:
        progress.evaluated(1, "validation", blocks)
    assert file.getvalue() == (
        "step 2/3  validation: block1 loss 1.250 accuracy 50.0%  block2 loss 0.750 accuracy 87.5%\n"
    )


def test_who_has_left_is_shown_no_more(clock: _Clock) -> None:
    progress, file = _progress(0, 9)
    with progress:
        for actor in ("block1", "block1.lane2"):
            progress.worked(actor, _spans())
        progress.changed(Changed(3, "lane 2 left: now 1", 1, frozenset({"block1"})))
        progress.worked("block1.lane2", _spans())  # what it had done before
        clock.now += 9
        progress.stepped(3, {})
        progress.changed(Changed(5, "lane 2 joined", 2, frozenset({"block1", "block1.lane2"})))
        progress.worked("block1.lane2", _spans())
        clock.now += 9
        progress.stepped(5, {})
        progress.recovered(Incident(1, 0.0, 5))  # lane 2 was given up
        progress.worked("block1", _spans())
        clock.now += 9
        progress.stepped(8, {})
    idle = [line.partition("idle: ")[2] for line in file.getvalue().splitlines() if "idle" in line]
    assert idle == ["block1 40%", "block1 40%, block1.lane2 40%", "block1 40%"]


def test_a_terminal_has_a_live_table(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # not that of the tests, which may be a dumb one
    progress, file = _progress(0, 3, force_terminal=True)
    with progress:
        progress.worked("source", _spans())
        progress.evaluated(0, "validation", {"block2": {"loss": 1.0, "accuracy": 0.625}})
        progress.stepped(0, METRICS)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "\x1b[" in file.getvalue() and "validation: " not in text
    last = text[text.rindex("step 1/3   0.0 steps/s") :]
    rows = [re.sub(r"\W*[│┃]\W*", "|", line) for line in last.splitlines()]
    assert [r for r in rows if "|" in r] == [
        "|actor|loss|accuracy|validation|idle|",
        "|block1|1.250|50.0|",
        "|block2|0.750|87.5|62.5|",
        "|feedback1|3.500|",
        "|source|40|",
    ]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_closing_table(capsys: pytest.CaptureFixture[str], tmp_path: object) -> None:
    words = [*SMALL, "training.steps=9", "training.evaluate_every=4", f"run.directory={tmp_path}/r"]
    out = command(capsys, "train", *words)
    for part in (
        "step 9/9  ",
        "step 4/9  validation: block1 loss ",
        "step 9/9  test: block1 loss ",
    ):
        assert part in out
    assert re.search(r"step 9/9  \d+\.\d steps/s  block1 loss .*  idle: all \d+%\n", out)
    lines = out.splitlines()
    (header,) = (line for line in lines if "validation accuracy" in line)
    assert [cell.strip() for cell in header.strip("┃").split("┃")] == [
        "block",
        "validation accuracy",
        "validation loss",
        "test accuracy",
        "test loss",
    ]
    rows = [_cells(line) for line in lines if line.startswith("│ block")]
    assert [row[0] for row in rows] == ["block1", "block2"]
    (evaluated,) = (line for line in lines if line.startswith("step 9/9  test: "))
    for name, _, _, accuracy, loss in rows:
        assert re.fullmatch(r"\d+\.\d\d%", accuracy)
        assert f"{name} loss {float(loss):.3f} accuracy {float(accuracy[:-1]):.1f}%" in evaluated
    assert lines[-2] == f"run directory: {tmp_path}/r"
    assert re.fullmatch(r"\d+\.\d steps/s", lines[-1])


def test_training_on_a_terminal(
    capsys: pytest.CaptureFixture[str], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = StringIO()
    console = Console(force_terminal=True, file=file, width=100)
    for module in (train, terminal):
        monkeypatch.setattr(module, "console", console)
    command(capsys, "train", *SMALL, "training.steps=3", f"run.directory={tmp_path}/r")
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "step 3/3   " in text and "validation" in text and "run directory: " in text
    assert "idle: all" not in text
