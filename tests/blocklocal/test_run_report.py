"""The report of a run: its numbers are those of the records, and every end of a run writes one."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from blocklocal import cli, tracked_files
from blocklocal.run_report import MOST_ROWS, write_report
from orchestrator.incidents import Incident
from orchestrator.losses import Loss
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import SMALL


def trained(path: Path, *words: str) -> RunDirectory:
    assert cli.main(["train", *SMALL, f"run.directory={path}", *words]) == 0
    return RunDirectory.open(path)


def rows(page: str, section: str) -> list[list[str]]:
    """The cells of the table of a section, without its head."""
    _, _, rest = page.partition(f"## {section}\n")
    assert rest, section
    lines = [line for line in rest.partition("\n## ")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_a_run_ends_with_its_report(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "optimizer.lr=[0.01,0.02]")
    page = (run.path / "report.md").read_text()
    assert page.startswith(f"# Run run\n\nFinished after {run.state.steps} steps.\n")
    assert "| adamw, lr 0.01, 0.02 |" in page
    (test,) = [r for r in run.read_metrics() if r["split"] == "test"]
    count = len(run.plan.blocks)
    results = rows(page, "Results")
    assert [row[0] for row in results] == [f"block{k + 1}" for k in range(count)]
    for row in results:
        assert row[-2:] == [f"{test[f'{row[0]}/{name}']:.4g}" for name in ("loss", "accuracy")]
    assert f"The best checkpoint is that of step {run.checkpoints.best}." in page
    sizes = [row[2] for row in rows(page, "Blocks")]
    assert sizes == [f"{block.parameters:,}" for block in run.plan.blocks]
    assert "Incidents" not in page and "png" not in page


def test_the_command_draws_pictures_and_shows_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run")
    for _ in range(2):  # the second time over the first
        assert cli.main(["report", str(run.path)]) == 0
        assert f"wrote {run.path / 'report.md'} and its pictures" in capsys.readouterr().out
    page = (run.path / "report.md").read_text()
    for name in ("curves.png", "timeline.png"):
        assert page.count(f"({name})") == 1
        assert (run.path / name).read_bytes().startswith(b"\x89PNG")
    assert [row[0] for row in rows(page, "Actors")] == ["all"]  # one process does all


def test_a_run_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> None:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr("orchestrator.trainer.Trainer.train", fail)
    with pytest.raises(RuntimeError):
        cli.main(["train", *SMALL, f"run.directory={tmp_path / 'run'}"])
    page = (tmp_path / "run/report.md").read_text()
    assert "Failed after 0 steps.\n\n> RuntimeError: no room\n" in page


def test_what_happened_is_told_in_order(tmp_path: Path) -> None:
    run = trained(tmp_path / "run")
    losses = [Loss("block1", "actor", "", 0, ""), Loss("block2", "node", "", 0, "")]
    run.append_incident(Incident(1, 9e9, 15, losses, resumed=12, lanes=1).record())
    run.append_change(4, "lane 2 joined: now 2", 2)
    page = write_report(run).read_text()
    _, _, told = page.partition("## Incidents and changes\n\n")
    assert told.splitlines() == [
        "- before step 4: lane 2 joined: now 2",
        "- after step 15: lost block1 (actor), block2 (node); replaced and replayed, 3 steps lost",
    ]


def test_of_many_evaluations_some_are_shown(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "training.steps=1")
    told = [{"step": s, "split": "validation", "block1/loss": 1 / (s + 1)} for s in range(1, 300)]
    run.append_metrics(told)
    shown = rows(write_report(run).read_text(), "Validation loss")
    assert len(shown) == MOST_ROWS and shown[-1] == ["300", f"{1 / 300:.4g}"]
    steps = [int(row[0]) for row in shown]
    assert steps == sorted(set(steps))


def test_a_long_timeline_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        names = {path.name for path in tracked_files.files_of(run)}
        assert "trace.json" in names and not caplog.messages
        assert "## Actors" in (run.path / "report.md").read_text()
        monkeypatch.setattr(tracked_files, "MOST_BYTES", 10)
        assert {path.name for path in tracked_files.files_of(run)} == names - {"trace.json"}
    assert "## Actors" not in (run.path / "report.md").read_text()
    assert f"the timeline of {run.path} is not in its report" in caplog.text


def test_a_damaged_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run")
    (run.path / "version.json").write_text(json.dumps({})[:1])
    before = (run.path / "report.md").read_bytes()
    assert cli.main(["report", str(run.path)]) == 2
    assert f"{run.path / 'version.json'} is damaged" in capsys.readouterr().err
    assert (run.path / "report.md").read_bytes() == before


def test_two_processes_may_write_a_report_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that is stopped does, and the sweep that hears of its end."""
    run = trained(tmp_path / "run")
    replace = os.replace

    def while_another_writes(new: Path, path: Path) -> None:
        monkeypatch.setattr(os, "replace", replace)
        write_report(run)
        replace(new, path)

    monkeypatch.setattr(os, "replace", while_another_writes)
    before = {path.name for path in run.path.iterdir()}
    write_report(run)
    assert {path.name for path in run.path.iterdir()} == before
