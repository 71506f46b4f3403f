"""Metrics and spans of a run survive torn lines, faults and being taken back to a step."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest

from actors.operations import Span
from learning.errors import UserError
from orchestrator import lines as line_files
from orchestrator.record_files import RecordError
from orchestrator.rundir import RunDirectory
from tests.orchestrator.faults import fault, with_faults
from tests.orchestrator.runs import make, metrics_of, spans_of

pytestmark = pytest.mark.usefixtures("no_fsync")


def test_metrics_and_spans(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.append_metrics([{"step": 0, "loss": 0.1}, {"step": 1, "name": "é\n"}])
    run.append_metrics([])
    run.append_spans("block1", [Span("F", 3, 1, started=10, ended=20, waited=5, blocked=2)])
    assert metrics_of(run) == [
        {"step": 0, "loss": 0.1},
        {"step": 1, "name": "é\n"},
    ]  # not closed
    span = {"actor": "block1", "kind": "F", "step": 3, "shard": 1}
    span |= {"started": 10, "ended": 20, "waited": 5, "blocked": 2}
    assert spans_of(run) == [span]
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            run.append_metrics([{"step": 2}, {"step": 2, "loss": value}])
    with pytest.raises(TypeError):
        run.append_metrics([{"step": 2, "loss": object()}])
    assert len(metrics_of(run)) == 2
    run.close()
    run.append_metrics([{"step": 2}])
    assert len(metrics_of(run)) == 3
    run.close()


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_torn_last_line_is_ignored_and_not_appended_to(tmp_path: Path, chunk: int) -> None:
    lines = b'{"step": 0}\n{"step": 1}\n'
    for i in range(len(lines) + 1):
        run = make(tmp_path / str(i))
        (run.path / "metrics.jsonl").write_bytes(lines[:i])
        whole = lines[:i].count(b"\n")
        assert metrics_of(run) == [{"step": s} for s in range(whole)]
        with mock.patch.object(line_files, "CHUNK", chunk):
            run.append_metrics([{"step": 9}])
        assert metrics_of(run) == [*({"step": s} for s in range(whole)), {"step": 9}]
        run.close()


@pytest.mark.parametrize("line", ["{", "\0\0", "[]", "1", "", '{"step": "1"}', "\xff"])
def test_other_damage_is_named(tmp_path: Path, line: str) -> None:
    run = make(tmp_path / "a")
    path = run.path / "metrics.jsonl"
    rows = [f'{{"step": {step}, "split": "train"}}' for step in range(2)]
    text = f"{rows[0]}\n{line}\n{rows[1]}\n".encode("latin-1")
    path.write_bytes(text)
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged in line 2 .*delete that line"):
        run.read_metrics()
    with pytest.raises(UserError, match="line 2"):
        run.rewind(0)
    assert path.read_bytes() == text and not (run.path / ".metrics.jsonl.new").exists()
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        run.read_metrics()


def test_interrupted_append(tmp_path: Path) -> None:
    run = make(tmp_path / "a")
    run.append_metrics([{"step": 0}])
    with fault(1, "once"), pytest.raises(RecordError, match="cannot write"):
        run.append_metrics([{"step": 1}, {"step": 2}, {"step": 3}])
    assert metrics_of(run) == [{"step": 0}, {"step": 1}]  # half of the bytes: 1 and a torn 2
    run.append_metrics([{"step": 4}])
    assert metrics_of(run) == [{"step": 0}, {"step": 1}, {"step": 4}]
    run.close()


def _fill(path: Path) -> RunDirectory:
    run = make(path)
    run.append_metrics([{"step": s} for s in range(5)] + [{"note": "kept"}])
    run.append_spans(
        "block1", [Span("F", s, 0, started=1, ended=2, waited=0, blocked=0) for s in range(5)]
    )
    return run


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_rewind(tmp_path: Path, chunk: int) -> None:
    run = _fill(tmp_path / "a")
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1')
    with mock.patch.object(line_files, "CHUNK", chunk):
        run.rewind(3)
    assert metrics_of(run) == [{"step": 0}, {"step": 1}, {"step": 2}, {"note": "kept"}]
    assert [s["step"] for s in spans_of(run)] == [0, 1, 2]
    run.append_metrics([{"step": 3}])  # goes to the new file, not to the one replaced
    assert metrics_of(run)[-1] == {"step": 3}
    run.rewind(0)
    assert metrics_of(run) == [{"note": "kept"}] and spans_of(run) == []


def test_interrupted_rewind(tmp_path: Path) -> None:
    old, new = list(range(5)), list(range(2))
    outcomes = set()

    def act(d: Path) -> None:
        RunDirectory.open(d / "a").rewind(2)

    for d, _ in with_faults(tmp_path, lambda d: _fill(d / "a").close(), act):
        run = RunDirectory.open(d / "a")
        metrics = [r["step"] for r in metrics_of(run) if "step" in r]
        spans = [r["step"] for r in spans_of(run)]
        assert metrics in (old, new) and spans in (old, new)
        outcomes.add((len(metrics), len(spans)))
        run.rewind(2)
        assert [r["step"] for r in spans_of(run)] == new
        assert len(metrics_of(run)) == 3
    assert outcomes == {(5, 5), (2, 5), (2, 2)}
