"""Time to accuracy: it goes on where it was interrupted, with the rules that differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import time_to_accuracy
from benchmarks.time_to_accuracy_tasks import ONE_PROCESS, Task, rules_of
from tests.benchmarks.helpers import Written


def test_time_to_accuracy_goes_on_after_the_last_finished_run(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: None
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog.\n" * 700)
    options = ["--text", str(text), "--text-steps", "2", "--every", "1", "--rows", "10"]
    options += ["--perplexity", "1000", "--rules", "local"]
    main: Callable[[list[str]], None] = time_to_accuracy.main
    measure = time_to_accuracy.measure

    def interrupted(task: Any, name: str, blocks: int, seed: int) -> dict[str, Any]:
        if name == "local":
            raise KeyboardInterrupt
        return measure(task, name, blocks, seed)

    def second(task: Any, name: str, blocks: int, seed: int) -> dict[str, Any]:
        assert name == "local", "the other run is finished"
        return measure(task, name, blocks, seed)

    monkeypatch.setattr(time_to_accuracy, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        main(options)
    monkeypatch.setattr(time_to_accuracy, "measure", second)
    main(options)
    runs = written["time_to_accuracy"]["runs"]
    assert [run["rule"] for run in runs] == [ONE_PROCESS, "local"]
    for run in runs:
        assert [c["step"] for c in run["curve"]] == [1, 2]
        assert 0 < run["curve"][0]["seconds"] < run["curve"][1]["seconds"]
        assert run["steps_to_target"] == 1
    assert f"| {ONE_PROCESS} |" in (tmp_path / "time_to_accuracy.md").read_text()


def test_rules_that_are_backprop_are_left_out() -> None:
    task = Task("cifar10", {}, 1, 1, 1, 0.5, falling=False)
    assert "pairwise" not in rules_of(task, 2)
    assert "3-wise" in rules_of(task, 4)
    assert "backprop" in rules_of(task, 2)
