"""The benchmarks run, their peers compute what they claim to, their figures are right."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from actors.operations import Span
from benchmarks import hop, measuring, ours, peers, reach, records, throughput, throughput_page
from benchmarks.crew import Crew, Seat, free_port
from benchmarks.throughput import CASES, Case, Lengths
from benchmarks.throughput_page import CEILING, TARGETS, TWO_THREADS, ours_name, pipelining_name
from benchmarks.workloads import LEARNING_RATE, MOMENTUM, Workload, configuration, prepared
from learning.messages import block_name
from learning.sequential import SequentialEngine
from learning.units import Chain

STEPS = 3
TINY = Workload("mlp", 8, 8, layers=2)
KINDS = {
    "mlp": TINY,
    "spread": Workload("mlp", 8, 8, layers=2, spread=3),
    "conv": Workload("conv", 4, 8, layers=2),
    "gpt": Workload("gpt", 8, 4, layers=1),
}


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    with Crew(2) as pair:
        yield pair


# --- workloads --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_blocks_are_equal_and_messages_as_large_as_said(kind: str) -> None:
    workload = KINDS[kind]
    ready = prepared(workload, configuration(workload, 1))
    blocks = ready.plan.units_of_blocks(ready.units)
    sizes = [
        sum(
            p.numel() for u in units for p in u.module.parameters() if not u.name.startswith("head")
        )
        for units in blocks
    ]
    assert len(set(sizes)) == 1 and len(sizes) == workload.blocks
    sent = np.prod(ready.program.output_shapes[0]) * workload.batch * torch.float32.itemsize
    assert sent == workload.message_bytes


def test_the_networks_weights_are_the_same_in_every_process() -> None:
    state, again = TINY.network().state_dict(), TINY.network().state_dict()
    assert all(torch.equal(t, again[n]) for n, t in state.items())


# --- peers ------------------------------------------------------------------------------------


def backprop_by_hand(workload: Workload, steps: int) -> dict[str, np.ndarray]:
    """The weights after momentum SGD on the mean loss, written out."""
    ready = prepared(workload, configuration(workload, steps, rule="backprop"))
    model = Chain(ready.units)
    parameters = list(model.parameters())
    velocities = [torch.zeros_like(p) for p in parameters]
    for step in range(steps):
        x, y = ready.batches.batch(step % peers.BATCHES)
        loss = F.cross_entropy(model(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, v, g in zip(parameters, velocities, gradients, strict=True):
                v.mul_(MOMENTUM).add_(g)
                p.sub_(LEARNING_RATE * v)
    return {n: t.detach().numpy() for n, t in model.original_state().items()}


def assert_same_weights(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> None:
    assert left.keys() == right.keys()
    for name, weights in left.items():
        np.testing.assert_allclose(weights, right[name], rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(("schedule", "microbatches"), [("GPipe", 1), ("GPipe", 4), ("1F1B", 4)])
@pytest.mark.parametrize("kind", ["mlp", "gpt"])
def test_pipelining_trains_as_backprop_does(
    crew: Crew, kind: str, schedule: str, microbatches: int
) -> None:
    workload = KINDS[kind]
    done = crew.run(peers.pipelined, workload, schedule, microbatches, free_port(), 1, STEPS - 1)
    weights = {n: t for _, state in done for n, t in state.items()}
    assert_same_weights(weights, backprop_by_hand(workload, STEPS))
    assert all(state for _, state in done) and all(seconds > 0 for seconds, _ in done)


def test_pipelining_has_no_1f1b_with_fewer_microbatches_than_blocks() -> None:
    for case in CASES.values():
        for schedule, microbatches in case.schedules:
            assert schedule != "1F1B" or microbatches >= case.workload.blocks
            assert case.workload.batch % microbatches == 0


def test_plain_backprop_is_backprop() -> None:
    seat = Seat(0, 1, None)
    seconds, weights = peers.plain_backprop(seat, TINY, 1, 1, STEPS - 1)
    assert seconds > 0
    assert_same_weights(weights, backprop_by_hand(TINY, STEPS))


def test_our_backprop_is_that_of_the_peers() -> None:
    """The engine that the ratios are about trains the same network from the same batches."""
    ready = prepared(TINY, configuration(TINY, STEPS, rule="backprop", order="gpipe", shards=2))
    engine = SequentialEngine(ready.program, ready.plan.units_of_blocks(ready.units))
    for step in range(STEPS):
        engine.train_step(step, ready.batches.shard)
    ours_after = {n: t.detach().numpy() for n, t in Chain(ready.units).original_state().items()}
    assert_same_weights(ours_after, backprop_by_hand(TINY, STEPS))


def test_the_ceiling_needs_no_neighbour() -> None:
    """Each block alone does all its steps; the barrier is met once, after the warm-up."""

    class Barrier:
        met = 0

        def wait(self) -> None:
            Barrier.met += 1

    for rank in range(2):
        assert peers.block_alone(Seat(rank, 2, Barrier()), TINY, 1, STEPS) > 0
    assert Barrier.met == 2


def test_a_crew_says_what_failed_in_it() -> None:
    with Crew(1) as one:
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            one.run(fails)
        with pytest.raises(RuntimeError, match="ended with code 7"):
            one.run(dies)


def fails(seat: Seat) -> float:
    return 1 / seat.rank


def dies(seat: Seat) -> None:
    raise SystemExit(7)


# --- measuring --------------------------------------------------------------------------------


@given(n=st.integers(1, 8), repeats=st.integers(1, 8))
def test_every_order_has_all_contenders_and_they_take_turns(n: int, repeats: int) -> None:
    names = [str(i) for i in range(n)]
    orders = [measuring.rotated(names, i, repeats) for i in range(repeats)]
    assert all(sorted(order) == names for order in orders)
    starts = [order[0] for order in orders]
    assert max(starts.count(s) for s in starts) <= -(-repeats // n)


def repeat(**rates: float) -> measuring.Repeat:
    samples: dict[str, measuring.Sample] = {
        name: {"rate": rate, "details": {}} for name, rate in rates.items()
    }
    return {
        "busy_cores": 0.0,
        "load_average": 0.0,
        "stolen_s": 0.0,
        "order": list(samples),
        "samples": samples,
    }


def test_ratios_are_within_a_repeat() -> None:
    """A machine that is four times slower in one repeat changes rates, not ratios."""
    repeats = [repeat(a=2.0, b=1.0), repeat(a=0.5, b=0.25), repeat(a=6.0, b=2.0)]
    assert measuring.ratios(repeats, "a", "b") == [2.0, 2.0, 3.0]
    assert measuring.spread(measuring.ratios(repeats, "a", "b")) == "2.00 (2.00 to 3.00)"
    assert measuring.noise([1.0, 2.0, 3.0]) == 0.5


def test_the_best_has_the_highest_median_not_the_highest_value() -> None:
    repeats = [repeat(a=2.0, b=9.0), repeat(a=2.0, b=1.0), repeat(a=2.0, b=1.0)]
    assert measuring.best(repeats, ["a", "b"]) == "a"


def test_interleaving_calls_every_contender_once_a_repeat() -> None:
    called: list[str] = []

    def contender(name: str) -> measuring.Sample:
        called.append(name)
        return {"rate": float(len(called)), "details": {}}

    contenders = {name: (lambda name=name: contender(name)) for name in "ab"}
    lines: list[str] = []
    repeats = measuring.interleaved(contenders, 2, lines.append)
    assert called == ["a", "b", "b", "a"]
    assert measuring.rates(repeats, "a") == [1.0, 4.0]
    assert len(lines) == 2 and all(r["load_average"] >= 0 for r in repeats)


@given(step=st.floats(1e-4, 1.0), slower=st.floats(0.5, 4.0))
def test_contenders_run_about_equally_long(step: float, slower: float) -> None:
    warmup, steps = Lengths(2.0, step).of(slower)
    assert warmup >= throughput.LEAST_WARMUP and steps >= throughput.LEAST_STEPS
    assert steps == throughput.LEAST_STEPS or abs(steps * step * slower - 2.0) <= step * slower


def test_where_a_step_goes_adds_up() -> None:
    spans = [
        Span("F", 0, 0, 0, 9, 0, 0),  # warm-up
        Span("F", 1, 0, 10_000_000, 14_000_000, 1_000_000, 500_000),
        Span("U", 1, 0, 15_000_000, 18_000_000, 0, 0),
    ]
    assert ours._parts(spans, 1, 1) == {
        "step_ms": 8.0,
        "work_ms": 5.5,
        "waiting_ms": 1.0,
        "blocked_ms": 0.5,
        "between_ms": 1.0,
    }


# --- pages ------------------------------------------------------------------------------------


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


# --- the benchmarks themselves, tiny --------------------------------------------------------------


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


class Lent:
    """A crew that outlives the benchmark that uses it."""

    def __init__(self, crew: Crew) -> None:
        self.crew = crew

    def __enter__(self) -> Crew:
        return self.crew

    def __exit__(self, *_: object) -> None:
        pass


def test_hop_runs(
    ray_cluster: None, crew: Crew, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(measuring, "LOOKING_SECONDS", 0.05)
    monkeypatch.setattr(hop, "Crew", lambda size: Lent(crew))
    hop.main(["--quick", "--repeats", "1", "--results", str(tmp_path)])
    (done,) = json.loads((tmp_path / "hop.json").read_text())["repeats"]
    assert list(done["samples"]) == ["object_store", "direct", "pipe", "shared memory"]
    for sample in done["samples"].values():
        assert list(sample["details"]) == [str(size) for size in hop.SIZES[:3]]
        assert all(value > 0 for f in sample["details"].values() for value in f.values())


def test_hop_figures() -> None:
    trips = [2e-3] * 9 + [4e-3]
    found: dict[str, Any] = hop.figures(1000, trips, 0.5)
    assert found["latency_us"] == pytest.approx(1000) and found["bytes_per_second"] == 20_000
    assert 1000 <= found["latency_90_us"] <= 2000


def test_reach_runs(ray_cluster: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(reach, "RULES", {"backprop": reach.RULES["backprop"]})
    words = ["--repeats", "1", "--steps", "8", "--grain", "0.001", "--blocks", "2"]
    reach.main([*words, "--results", str(tmp_path)])
    record = json.loads((tmp_path / "reach.json").read_text())
    assert reach.expected(reach.RULES["backprop"], 2, 1.0) == 5
    assert record["step_ms"]["backprop"]["2"][0] > 5  # its waits alone, one after the other
    assert "K = 2" in (tmp_path / "reach.md").read_text()
