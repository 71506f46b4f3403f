"""Memory: counts by hand, and a tiny run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import memory, memory_blocks, memory_page
from benchmarks.live_bytes import LiveBytes
from benchmarks.memory_measuring import counted
from tests.benchmarks.helpers import Written

WIDTH, BATCH = 32, 16
HIDDEN = 4 * BATCH * WIDTH
"""Bytes of one activation of the MLP."""
LOSS = 4 * BATCH * memory_blocks.CLASSES + 8 * BATCH
"""Log-probabilities and labels, which cross-entropy keeps."""
LAYER = 4 * (WIDTH * WIDTH + WIDTH)
HEAD = 4 * (WIDTH * memory_blocks.CLASSES + memory_blocks.CLASSES)
SCALARS = 8
"""Sums of weights and losses, four bytes each."""


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
    case = memory_blocks.Case("mlp", rule, 2, WIDTH, BATCH, blocks, k)
    found = counted(case)
    assert found["activations"] == activations
    assert gradients <= found["gradients"] <= gradients + SCALARS
    assert found["allocated"] >= max(activations, gradients)
    assert counted(case) == found


def test_live_bytes_follow_storages_not_views_and_not_what_was_there() -> None:
    there = torch.ones(8)
    with LiveBytes() as live:
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
    found = memory_page.summary(rows)["mlp", 4, 8]["local", 2]
    assert found["process largest"] == (4, 3, 5)
    assert found["process sum"] == (7, 4, 8)


def test_four_equal_blocks_keep_about_a_quarter() -> None:
    one = counted(memory_blocks.Case("mlp", "backprop", 16, WIDTH, BATCH, 1, 1))
    largest = max(
        counted(memory_blocks.Case("mlp", "local", 16, WIDTH, BATCH, 4, k))["activations"]
        for k in range(1, 5)
    )
    assert largest <= memory_page.TARGET_SHARE * one["activations"]
