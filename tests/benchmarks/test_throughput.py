"""Throughput: its targets, its page, and a tiny run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import measuring, ours, records, throughput, throughput_page
from benchmarks.crew import Crew
from benchmarks.throughput import CASES, Case, Lengths
from benchmarks.throughput_page import CEILING, TARGETS, TWO_THREADS, ours_name, pipelining_name
from learning.messages import block_name
from tests.benchmarks.helpers import TINY, Lent, repeat


def test_targets_are_compared_with_the_best_schedule_of_the_same_run() -> None:
    target = next(t for t in TARGETS if t.against == "pipelining")
    fast, slow = pipelining_name("1F1B", 2), pipelining_name("GPipe", 8)
    mine = ours_name(target.transport)
    repeats = [repeat(**{mine: 6.0, fast: 2.0, slow: 1.0}) for _ in range(3)]
    assert throughput_page.measured(target, {target.case: {"repeats": repeats}}) == [3.0] * 3
    assert throughput_page.measured(target, {}) is None


def test_every_target_is_of_a_case_that_measures_it(crew: Crew) -> None:
    for target in TARGETS:
        lengths = Lengths(1.0, 0.01)
        names = list(
            throughput.contenders(CASES[target.case], crew, lengths, throughput.TRANSPORTS)
        )
        assert ours_name(target.transport) in names
        assert any(name.startswith(target.against) for name in names)
        assert CEILING in names and TWO_THREADS in names


def test_pages_say_reached_or_not() -> None:
    mine = ours_name("object_store")
    for rate, word in ((0.95, "yes"), (0.85, "no")):
        repeats = [repeat(**{CEILING: 1.0, mine: rate}) for _ in range(3)]
        for r in repeats:
            blocks = {block_name(k): dict.fromkeys(ours.PARTS, 1.0) for k in (1, 2)}
            r["samples"][mine]["details"] = {"blocks": blocks, "cpu_ms_a_step": {"raylet": 2.0}}
        case = {
            "environment": records.environment(),
            "workload": {
                "kind": "mlp",
                "width": 8,
                "batch": 8,
                "layers": 2,
                "blocks": 2,
                "message_bytes": 9,
            },
            "repeats": repeats,
        }
        text = throughput_page.page({"cases": {"mlp-30ms": case}})
        row = next(
            x
            for x in text.splitlines()
            if x.startswith("| object_store | mlp-30ms | of the ceiling")
        )
        assert row.endswith(f"| 0.90 | {rate:.2f} ({rate:.2f} to {rate:.2f}) | {word} | 1.00 |")
        assert "raylet 2.00" in text and "not run" in text


def test_throughput_runs(
    ray_cluster: None, crew: Crew, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "LOOKING_SECONDS", 0.05)
    monkeypatch.setattr(throughput, "Crew", lambda size: Lent(crew))
    small = Case(TINY, False, (("1F1B", 2),), (("1f1b", 2),))
    monkeypatch.setattr(throughput, "CASES", {"mlp-30ms": small, "mlp-4ms": Case(TINY)})
    words = ["--repeats", "1", "--seconds", "0.02", "--results", str(tmp_path)]
    throughput.main([*words, "--only", "mlp-30ms", "--transports", "object_store"])
    first = json.loads((tmp_path / "throughput.json").read_text())["cases"]
    assert list(first) == ["mlp-30ms"]
    samples = first["mlp-30ms"]["repeats"][0]["samples"]
    assert len(samples) == 5 and all(s["rate"] > 0 for s in samples.values())
    assert set(samples[ours_name("object_store")]["details"]["blocks"]) == {"block1", "block2"}
    monkeypatch.setattr(throughput, "measure", lambda case, **_: first["mlp-30ms"])
    throughput.main([*words, "--only", "mlp-4ms"])
    both = json.loads((tmp_path / "throughput.json").read_text())["cases"]
    assert list(both) == ["mlp-30ms", "mlp-4ms"] and both["mlp-30ms"] == first["mlp-30ms"]
    text = (tmp_path / "throughput.md").read_text()
    assert "## mlp-4ms" in text and records.table_of(text).count("\n") == len(TARGETS) + 2
