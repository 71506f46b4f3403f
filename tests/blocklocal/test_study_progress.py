"""Progress of a study: plain lines, and the live table of a terminal."""

from __future__ import annotations

from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

from blocklocal.compare import progress
from blocklocal.compare.progress import PLAIN_SECONDS, StudyProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def follow(shown: StudyProgress, clock: SimpleNamespace) -> None:
    shown.started("local, seed 0")
    shown.started("bll [x], seed 0")
    shown.stepped("local, seed 0", 10, 400)
    clock.now += PLAIN_SECONDS
    shown.stepped("local, seed 0", 20, 400)
    shown.stepped("local, seed 0", 21, 400)
    shown.ended("local, seed 0", "accuracy 72.00% in 3 s")


def test_plain_lines(clock: SimpleNamespace) -> None:
    file = StringIO()
    with StudyProgress(Console(file=file, width=40), 6) as shown:
        follow(shown, clock)
    assert file.getvalue().splitlines() == [
        "0/6  local, seed 0 20/400; bll [x], seed 0 starting",
        "1/6  local, seed 0: accuracy 72.00% in 3 s",
    ]


def test_a_table_on_a_terminal(clock: SimpleNamespace) -> None:
    file = StringIO()
    with StudyProgress(Console(file=file, width=60, force_terminal=True), 6) as shown:
        follow(shown, clock)
    assert "1/6  local, seed 0: accuracy 72.00% in 3 s" in file.getvalue()
    assert "1/6 done" in file.getvalue()
    assert "0/6  local" not in file.getvalue()
