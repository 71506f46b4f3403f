"""The benchmarks of memory, start, scale and time to accuracy: counts by hand, and tiny runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import memory, records, scale, start, time_to_accuracy

WIDTH, BATCH = 32, 16
HIDDEN = 4 * BATCH * WIDTH
"""Bytes of one activation of the MLP."""
LOSS = 4 * BATCH * memory.CLASSES + 8 * BATCH
"""Log-probabilities and labels, which cross-entropy keeps."""
LAYER = 4 * (WIDTH * WIDTH + WIDTH)
HEAD = 4 * (WIDTH * memory.CLASSES + memory.CLASSES)
SCALARS = 8
"""Sums of weights and losses, four bytes each."""

Written = dict[str, dict[str, Any]]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Records that benchmarks write, by name; their pages go to a temporary directory."""
    found: Written = {}

    def write(name: str, record: dict[str, Any], page: str) -> None:
        found[name] = json.loads(json.dumps(record))
        (tmp_path / f"{name}.md").write_text(page)

    monkeypatch.setattr(records, "write", write)
    monkeypatch.setattr(records, "RESULTS", tmp_path)
    return found


def test_cases_of_the_sweep() -> None:
    options = "--repeats 2 --networks mlp --blocks 1 2 4 --depths 4 8 --batches 16 32"
    cases = memory.cases(memory.options(options.split()))
    again = [(c.rule, c.blocks, c.k) for c in cases if c.repeat == 1]
    fours = [(rule, 4, k) for rule in ("local", "backprop") for k in range(1, 5)]
    assert set(again) == {("backprop", 1, 1), *fours}
    assert {(c.depth, c.batch) for c in cases} == {(8, 32), (4, 32), (8, 16)}
    assert len(set(cases)) == len(cases) == (1 + 2 + 8) + 2 * (1 + 2 + 4) + (1 + 8)


@pytest.mark.parametrize(
    ("rule", "blocks", "k", "activations", "gradients"),
    [
        # The input, and what each ReLU put out, which the next layer takes.
        ("backprop", 1, 1, 3 * HIDDEN + LOSS + SCALARS, 2 * LAYER + HEAD),
        # Half the layers, and a head and a loss of its own.
        ("local", 2, 1, 2 * HIDDEN + LOSS + SCALARS, LAYER + HEAD),
        ("local", 2, 2, 2 * HIDDEN + LOSS + SCALARS, LAYER + HEAD),
        # Half the layers; the loss is another block's.
        ("backprop", 2, 1, 2 * HIDDEN, LAYER),
    ],
)
def test_bytes_of_a_two_layer_mlp(
    rule: str, blocks: int, k: int, activations: int, gradients: int
) -> None:
    case = memory.Case("mlp", rule, 2, WIDTH, BATCH, blocks, k)
    found = memory.counted(case)
    assert found["activations"] == activations
    assert gradients <= found["gradients"] <= gradients + SCALARS
    assert found["allocated"] >= max(activations, gradients)
    assert memory.counted(case) == found


def test_live_bytes_follow_storages_not_views_and_not_what_was_there() -> None:
    there = torch.ones(8)
    with memory.LiveBytes() as live:
        there.add_(1)
        kept = torch.ones(100)
        view = kept[:50].reshape(5, 10)
        del kept
        live.before_update()
        assert live.gradients == 400  # the view keeps the whole storage
        del view
        live.gradients = 0
        live.before_update()
        assert live.gradients == 0
        small = torch.ones(10)
    assert live.peak == 400
    del small


def test_memory(written: Written, tmp_path: Path) -> None:
    options = "--repeats 1 --networks mlp --blocks 1 2 --depths 2 --batches 8 --width 16"
    memory.main(options.split())
    measured = written["memory"]["measured"]
    assert [(m["rule"], m["blocks"], m["k"]) for m in measured] == [
        ("backprop", 1, 1),
        ("local", 2, 1),
        ("local", 2, 2),
    ]
    assert all(m["process"] > m["process_above"] >= 0 for m in measured)
    assert "## mlp, 2 layers of 16, batch 8" in (tmp_path / "memory.md").read_text()


def test_summary_has_the_largest_block_and_the_sum() -> None:
    rows = [
        {"network": "mlp", "depth": 4, "batch": 8, "rule": "local", "blocks": 2, "repeat": repeat}
        | dict.fromkeys(("activations", "gradients", "allocated", "process_above", "process"), size)
        for repeat, sizes in enumerate([(1, 3), (2, 5), (4, 4)])
        for size in sizes
    ]
    found = memory.summary(rows)["mlp", 4, 8]["local", 2]
    assert found["process largest"] == (4, 3, 5)
    assert found["process sum"] == (7, 4, 8)


def test_four_equal_blocks_keep_about_a_quarter() -> None:
    one = memory.counted(memory.Case("mlp", "backprop", 16, WIDTH, BATCH, 1, 1))
    largest = max(
        memory.counted(memory.Case("mlp", "local", 16, WIDTH, BATCH, 4, k))["activations"]
        for k in range(1, 5)
    )
    assert largest <= memory.TARGET_SHARE * one["activations"]


def test_start(written: Written) -> None:
    start.main(["--repeats", "1", "--cases", "local, without tracking"])
    (run,) = written["start"]["cases"]["local, without tracking"]
    assert all(value >= 0 for value in run["phases"].values())
    assert run["seconds"] == pytest.approx(sum(run["phases"].values()))
    assert run["cpu"]["driver"] > 0


def test_scale(written: Written, tmp_path: Path, ray_cluster: None) -> None:
    options = "--repeats 1 --blocks 2 --steps 20 --warmup 5 --long-steps 20 --parts 2"
    scale.main(options.split())
    (marks,) = written["scale"]["sweep"]["2"]
    assert [mark["step"] for mark in marks] == [5, 20]
    assert marks[1]["driver"] >= marks[0]["driver"]
    assert {"gcs", "raylet"} <= set(marks[0])
    assert "| 10 to 20 |" in (tmp_path / "scale.md").read_text()


def test_cost_is_by_steps_and_blocks() -> None:
    names = ("driver", "gcs", "raylet", "wall")
    first = {"step": 10} | dict.fromkeys(names, 1.0)
    last = {"step": 20} | {name: 2.0 + i for i, name in enumerate(names)}
    assert scale.cost(first, last, 2) == {"driver": 50, "gcs": 100, "raylet": 150, "wall": 200}


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
    assert [run["rule"] for run in runs] == [time_to_accuracy.ONE_PROCESS, "local"]
    for run in runs:
        assert [c["step"] for c in run["curve"]] == [1, 2]
        assert 0 < run["curve"][0]["seconds"] < run["curve"][1]["seconds"]
        assert run["steps_to_target"] == 1
    assert f"| {time_to_accuracy.ONE_PROCESS} |" in (tmp_path / "time_to_accuracy.md").read_text()


def test_rules_that_are_backprop_are_left_out() -> None:
    task = time_to_accuracy.Task("cifar10", {}, 1, 1, 1, 0.5, falling=False)
    assert "pairwise" not in time_to_accuracy.rules_of(task, 2)
    assert "3-wise" in time_to_accuracy.rules_of(task, 4)
    assert "backprop" in time_to_accuracy.rules_of(task, 2)
