"""What the benchmarks of losses share: rates, comparing states, where results go."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from actors.operations import Span
from benchmarks import punisher, records, survival
from benchmarks.survival import WARMUP, Watch


def test_rate_is_from_the_end_of_the_warm_up_to_the_last_word() -> None:
    watch = Watch()
    for step in range(WARMUP + 10):
        watch.worked("block1", [Span("U", step, 0, 0, 1, 0, 0)])
        watch.worked("block2", [Span("F", step, 0, 0, 5, 0, 0)])
        watch.worked("block2", [Span("U", step, 0, 0, (step + 1) * 10**9, 0, 0)])
    watch.worked("block2", [Span("U", WARMUP - 1, 0, 0, 10**12, 0, 0)])  # done again
    watch.times = [0.0] * (WARMUP + 9) + [WARMUP + 20.0]
    assert watch.rate() == 0.5


def test_states_are_compared_by_bits_and_names() -> None:
    state = {"block1": {"w": torch.tensor([1.0, 2.0])}, "block2": {"w": torch.tensor([0.0])}}
    assert survival.same_bits(state, {n: {"w": t["w"].clone()} for n, t in state.items()})
    assert not survival.same_bits(state, {**state, "block2": {"w": torch.tensor([1e-30])}})
    assert not survival.same_bits(state, {**state, "block2": {"v": torch.tensor([0.0])}})
    assert not survival.same_bits(state, {"block1": state["block1"]})


def test_quick_runs_leave_the_committed_results_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written: list[Path] = []
    monkeypatch.setattr(records, "write", lambda *given: written.append(given[-1]))
    for words in ([], ["--quick"], ["--quick", "--results", str(tmp_path)]):
        survival.keep("name", {}, "page", punisher.options(words))
    assert written == [records.RESULTS, tmp_path]
