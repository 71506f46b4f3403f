"""Whatever the files of a run are, who reads them says one sentence or reads them right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from blocklocal import cli
from blocklocal.config import make_config
from blocklocal.run_curves import draw_curves
from blocklocal.run_report import write_report
from blocklocal.tracked_files import files_of, report_of
from learning.errors import MOST, UserError
from orchestrator.incidents import Incident
from orchestrator.losses import Loss
from orchestrator.rundir import RunDirectory
from orchestrator.timeline import draw
from orchestrator.trace import read_spans
from tests.blocklocal.helpers import SMALL, listing
from tests.damage import DAMAGE, How, truncated
from tuning.records import read_evaluations
from tuning.spool import Spool

pytestmark = pytest.mark.usefixtures("no_fsync")
Reader = Callable[[RunDirectory], object]


def config(run: RunDirectory) -> object:
    return make_config(run.config)


def curves(run: RunDirectory) -> None:
    draw_curves(run.read_metrics(), run.path / "curves.png")


def spans(run: RunDirectory) -> object:
    return read_spans(run.path / "spans.jsonl")


def queue(run: RunDirectory) -> object:
    spool = Spool(run.path / "tracking")
    return spool.read(100), spool.waiting


def best(run: RunDirectory) -> object:
    return run.checkpoints.best


READERS: dict[str, tuple[Reader, ...]] = {
    "config.yaml": (config, best, write_report),
    "version.json": (lambda run: run.version, write_report, report_of),
    "plan.json": (lambda run: run.plan, write_report),
    "state.json": (lambda run: run.state, write_report),
    "metrics.jsonl": (RunDirectory.read_metrics, read_evaluations, write_report),
    "spans.jsonl": (spans, files_of),
    "incidents.jsonl": (RunDirectory.read_incidents, write_report),
    "changes.jsonl": (RunDirectory.read_changes, write_report),
    "checkpoints/index.json": (best, write_report),
    "tracking/sent.json": (queue,),
    "tracking/000001.jsonl": (queue,),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with every kind of record."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert cli.main(["train", *SMALL, f"run.directory={path}", "training.steps=8"]) == 0
    run = RunDirectory.open(path)
    losses = [Loss("block1", "actor", "", 0, "")]
    run.append_incident(Incident(1, 9e9, 5, losses, resumed=4, lanes=1).record())
    run.append_change(4, "lane 2 joined: now 2", 2)
    run.close()
    queue = Spool(path / "tracking")
    queue.append({"do": "metrics", "number": 1})
    queue.save()
    queue.close()
    return path


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.parametrize("name", READERS)
def test_damage_is_read_right_or_told_in_one_sentence(
    whole: Path, tmp_path: Path, name: str, how: How
) -> None:
    shutil.copytree(whole, tmp_path / "run")
    path = tmp_path / "run" / name
    others = [(whole / other).read_bytes() for other in READERS if other != name]
    told = 0
    for _ in how(path, others):
        for reader in READERS[name]:
            try:
                reader(RunDirectory.open(tmp_path / "run"))
            except UserError as error:
                told += 1
                text = str(error)
                assert len(text) <= MOST and text.isprintable(), text
    if how is not truncated or not name.endswith(".jsonl"):  # as a killed process leaves it
        assert told, "no reader minded"


def test_no_writer_follows_a_link(whole: Path, tmp_path: Path) -> None:
    """Nor is anything changed that a link leads to, whoever made the directory."""
    writers: dict[str, Reader] = {
        "lock": use,
        "state.json": lambda run: run.update_state(steps=3),
        ".state.json.new": lambda run: run.update_state(steps=3),
        "metrics.jsonl": lambda run: run.append_metrics([{"step": 1, "split": "train"}]),
        "spans.jsonl": lambda run: run.append_spans("all", []),
        "incidents.jsonl": lambda run: run.append_incident({"step": 1}),
        "changes.jsonl": lambda run: run.append_change(1, "", 1),
        ".metrics.jsonl.new": lambda run: run.rewind(4),
        ".spans.jsonl.new": lambda run: run.rewind(4),
        "report.md": write_report,
        "curves.png": curves,
        "trace.json": files_of,
        "timeline.png": lambda run: draw(
            read_spans(whole / "spans.jsonl"), run.path / "timeline.png"
        ),
        "tracking/lock": queue,
        "tracking/sent.json": lambda run: Spool(run.path / "tracking").save(),
        "tracking/.sent.json.new": lambda run: Spool(run.path / "tracking").save(),
        "tracking/000001.jsonl": lambda run: Spool(run.path / "tracking").append({"do": "end"}),
        "tracking/refused.jsonl": lambda run: Spool(run.path / "tracking").refuse({}, "why"),
        "tracking": queue,
        "checkpoints": use,
    }
    precious = tmp_path / "precious"
    for name, writer in writers.items():
        shutil.rmtree(precious, ignore_errors=True)
        precious.mkdir()
        (precious / "file").write_text("of the user's, in one line\n")
        run = tmp_path / "run"
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(whole, run)
        path, is_directory = run / name, (whole / name).is_dir()
        if is_directory:
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(precious if is_directory else precious / "file")
        before = listing(precious)
        try:
            writer(RunDirectory.open(run))
            assert not path.is_symlink() or name.startswith((".", "tracking/.")), name
        except UserError as error:
            assert "symbolic link" in str(error), (name, str(error))
            assert str(path) in str(error)
        assert listing(precious) == before, name


def use(run: RunDirectory) -> None:
    with run.lock():
        pass
