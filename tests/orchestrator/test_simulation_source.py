"""Who makes the batches: block 1 right before it takes each, or an actor ahead of it, by hand."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from actors.operations import Kind
from learning.rules import Backprop, Local
from orchestrator.settings import SourcePlace
from orchestrator.simulation_machine import Prediction
from orchestrator.simulation_scale import scale
from tests.orchestrator.machines import (
    FREE,
    SOURCES,
    costs_of,
    made_program,
    one_node,
    run,
    slow_path,
    times,
)
from tests.orchestrator.simulator import kinds


def seconds(batch: float) -> dict[Kind, float]:
    """A forward of 1 s, a backward of 2 s, and a batch."""
    return {**times(1.0, 2.0), Kind.BATCH: batch}


def period(predicted: Prediction) -> float:
    return 1 / predicted.steps_per_second


@pytest.mark.parametrize(
    ("source", "batch", "step", "first"),
    [
        ("block1", 0.5, 0.5 + 3.0, 0.5 + 1.0 + 3.0),
        ("actor", 0.5, 3.0, 0.5 + 1.0 + 3.0),  # ahead of block 1, but for the first batch
        ("block1", 5.0, 5.0 + 3.0, 5.0 + 1.0 + 3.0),
        ("actor", 5.0, 5.0, 5.0 + 1.0 + 3.0),  # the source is the slowest
    ],
)
def test_local_blocks(source: SourcePlace, batch: float, step: float, first: float) -> None:
    predicted = run(Local(), 2, source=source, seconds=seconds(batch))
    assert period(predicted) == pytest.approx(step)
    assert predicted.completions[:2] == pytest.approx((first, first + step))
    # Beside an accelerator a processor makes the batch: meanwhile the device is idle.
    assert predicted.idle == pytest.approx([1 - 3.0 / step] * 2)


@pytest.mark.parametrize(
    ("order", "source", "step"),
    [
        # X0 F0, and X1 while block 2 is at work: only the first batch is waited for.
        ("1f1b", "block1", 0.5 + 9.0),
        # Block 2 runs both shards forward before it goes back, and waits for X1 too.
        ("gpipe", "block1", 0.5 + 0.5 + 9.0),
        ("1f1b", "actor", 9.0),
        ("gpipe", "actor", 9.0),
    ],
)
def test_a_pipeline_waits_for_batches(
    order: Literal["gpipe", "1f1b"], source: SourcePlace, step: float
) -> None:
    """(M + K - 1) (f + b) = 9 s, and the batches that nobody makes ahead."""
    predicted = run(Backprop(order=order), 2, 2, source=source, seconds=seconds(0.5))
    assert period(predicted) == pytest.approx(step)


def test_what_block_1_executes() -> None:
    inline, ahead = (
        run(Backprop(), 2, 2, source=source, seconds=seconds(0.5)) for source in SOURCES
    )
    assert {work.actor for work in inline.work} == {"block1", "block2"}
    assert {work.actor for work in ahead.work} == {"source", "block1", "block2"}
    first = [w.operation for w in inline.work if w.actor == "block1" and w.operation.step == 0]
    assert kinds(first) == "X0 F0 X1 F1 G0 G1 U"


def test_a_batch_of_block_1_is_no_message() -> None:
    """100 bytes through 10 bytes/s take 10 s, and are sent only where the source is an actor."""
    node = one_node(2, within=slow_path(10.0), message={"send": 0.25, "receive": 0.25})
    more: dict[str, Any] = {"cluster": node, "size": 100, "seconds": seconds(0.5)}
    inline, ahead = (run(Local(), 1, source=source, **more) for source in SOURCES)
    assert (inline.bytes_a_step, ahead.bytes_a_step) == (0.0, 100.0)
    assert period(inline) == pytest.approx(3.5)
    assert period(ahead) == pytest.approx(10.0)
    assert run(Local(), 2, source="block1", **more).bytes_a_step == 100.0


def test_only_one_batch_of_block_1_waits_to_be_taken() -> None:
    more: dict[str, Any] = {"size": 1000, "window": 3, "seconds": seconds(0.5)}
    inline, ahead = (run(Local(), 1, source=source, **more) for source in SOURCES)
    assert inline.peak_bytes == (1000,)
    assert ahead.peak_bytes == (3 * 1000,)


def test_accelerators_lend_batches_no_speed() -> None:
    """X, F, L, U with 0.1 s more each, all but X at twice the speed."""
    cluster = FREE.model_copy(update={"speed": 2.0, "overhead": 0.1})
    inline = run(Local(), 1, source="block1", cluster=cluster, seconds=seconds(0.5))
    assert period(inline) == pytest.approx(0.5 + 3.0 / 2 + 4 * 0.1)
    ahead = run(Local(), 1, source="actor", cluster=cluster, seconds=seconds(0.5))
    assert period(ahead) == pytest.approx(3.0 / 2 + 3 * 0.1)
    core = one_node(1, kind="cpu", speed=2.0, overhead=0.1)
    inline = run(Local(), 1, source="block1", cluster=core, seconds=seconds(0.5))
    assert period(inline) == pytest.approx(3.5 / 2 + 4 * 0.1)


@pytest.mark.parametrize("source", SOURCES)
def test_an_accelerator_works_for_others_while_a_batch_is_made(source: SourcePlace) -> None:
    predicted = run(
        Local(), 2, source=source, devices=[0, 0], cluster=one_node(1), seconds=seconds(0.5)
    )
    assert period(predicted) == pytest.approx(2 * 3.0)


def test_where_cores_are_free_an_actor_is_faster() -> None:
    """Three processes share two cores evenly; with two, block 1 has 4 s of work and block 2 3 s."""
    node = one_node(2, kind="cpu")
    more: dict[str, Any] = {"cluster": node, "steps": 60, "seconds": seconds(1.0)}
    assert period(run(Local(), 2, source="block1", **more)) == pytest.approx(4.0)
    assert period(run(Local(), 2, source="actor", **more)) == pytest.approx(7.0 / 2, rel=0.03)


def test_where_messages_cost_more_than_batches_block_1_is_faster() -> None:
    """Block 1: X, F and what it sends, L. With an actor there are 11 s of work on two cores."""
    node = one_node(2, kind="cpu", message={"send": 1.0, "receive": 1.0})
    more: dict[str, Any] = {"cluster": node, "steps": 60, "seconds": seconds(1.0)}
    assert period(run(Local(), 2, source="block1", **more)) == pytest.approx(5.0)
    assert period(run(Local(), 2, source="actor", **more)) >= 0.97 * 11.0 / 2


def test_a_batch_is_the_work_of_one_thread() -> None:
    """On one core, two threads take twice the time that was measured on two; a batch does not."""
    core = one_node(1, kind="cpu")
    predicted = run(Local(), 1, source="block1", cluster=core, threads=2, seconds=seconds(0.5))
    assert period(predicted) == pytest.approx(0.5 + 2 * 3.0)


def test_stages_of_a_block_take_whole_batches() -> None:
    made = made_program(Backprop(), 3)
    costs = scale(costs_of(made, seconds(0.5)), made, 6, share=0.5)
    assert costs.operations["source", Kind.BATCH].seconds == 0.5
    assert costs.operations["block1", Kind.FORWARD].seconds == 0.5 * 1.0
