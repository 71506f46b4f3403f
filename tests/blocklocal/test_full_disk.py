"""A disk that fails at any moment of a run ends it in one sentence, or costs what can be spared."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from blocklocal import cli
from orchestrator.rundir import RunDirectory
from orchestrator.trainer import Trainer
from tests.blocklocal.helpers import SMALL, only_sentence, save_arrays

pytestmark = pytest.mark.usefixtures("no_fsync")


@contextmanager
def failing(call: str, at: int, number: int) -> Iterator[list[int]]:
    """Let the `at`-th call of a function of the system fail, and no other."""
    real, count = getattr(os, call), [0]

    def fails(*arguments, **options):
        count[0] += 1
        if count[0] == at:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    with mock.patch.object(os, call, fails):
        yield count


def train(path: Path) -> int:
    """A run of one step, with everything that a run writes."""
    data = save_arrays(path.parent / "data.npz")
    words = ("data.kind=arrays", f"data.path={data}", "network.widths=[4,4]", "training.steps=1")
    return cli.main(["train", *SMALL, *words, "blocks.at=[layer2]", f"run.directory={path}"])


@pytest.mark.parametrize(
    ("call", "number"),
    [("write", errno.ENOSPC), ("open", errno.EACCES), ("replace", errno.EROFS)],
)
def test_a_disk_that_fails_once_at_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], call: str, number: int
) -> None:
    ends: dict[str, int] = {}
    for at in range(1, 400):
        path = tmp_path / str(at)
        with failing(call, at, number) as count:
            code = train(path)
        error = capsys.readouterr().err
        if count[0] < at:
            break
        state = RunDirectory.open(path).state.status if path.exists() else "not there"
        ends[state] = ends.get(state, 0) + 1
        if "metrics.jsonl (Perm" in error and state == "finished":
            continue  # it is over, and what came out cannot be told
        assert code == (0 if state == "finished" else 2), (at, error)
        if code == 2:
            first, *notes = error.splitlines()
            assert os.strerror(number) in only_sentence(first + "\n")
            assert all("cleaning up failed" in note for note in notes)
            assert state in ("failed", "not there"), at
    else:
        raise AssertionError("the calls do not end")
    assert set(ends) >= {"failed", "finished"}, ends


def test_a_run_whose_directory_goes_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Trainer._record

    def gone(self: Trainer, *arguments: Any) -> None:
        record(self, *arguments)
        shutil.rmtree(self.run.path, ignore_errors=True)

    monkeypatch.setattr(Trainer, "_record", gone)
    assert train(tmp_path / "run") == 2
    first, *notes = capsys.readouterr().err.splitlines()
    assert "(No such file or directory)" in only_sentence(first + "\n")
    assert len(notes) <= 1 and all("cleaning up failed" in note for note in notes)


def test_a_report_that_cannot_be_written_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def no_page(new: Path, path: Path) -> None:
        if path.name == "report.md":
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        replace(new, path)

    monkeypatch.setattr(os, "replace", no_page)
    assert train(tmp_path / "run") == 0
    assert RunDirectory.open(tmp_path / "run").state.status == "finished"
    assert "the report of" in caplog.text and "quota" in caplog.text
    assert not list((tmp_path / "run").glob(".report.md*"))
