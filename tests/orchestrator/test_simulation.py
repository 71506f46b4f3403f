"""The simulator against schedules worked out by hand."""

from __future__ import annotations

import math
from typing import Literal

import pytest

from actors.operations import Kind
from learning.learners.feedback import FeedbackSettings
from learning.rules import BLL, Backprop, Interlocking, Local
from tests.orchestrator.machines import FREE, run, slow_path, times


@pytest.mark.parametrize("order", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("blocks", "shards"), [(1, 1), (2, 1), (2, 4), (4, 4), (4, 8), (3, 2)])
def test_the_bubble_of_a_pipeline(
    order: Literal["gpipe", "1f1b"], blocks: int, shards: int
) -> None:
    """A step takes (M + K - 1) (f + b): M shards, K blocks, no costs between them."""
    predicted = run(Backprop(order=order), blocks, shards)
    assert 1 / predicted.steps_per_second == pytest.approx((shards + blocks - 1) * 3.0)
    assert predicted.completions[0] == pytest.approx((shards + blocks - 1) * 3.0)
    bubble = (blocks - 1) / (shards + blocks - 1)
    assert predicted.idle == pytest.approx([bubble] * blocks)


def test_1f1b_keeps_fewer_shards_than_gpipe() -> None:
    """Block k of K keeps K-k+1 shards where GPipe keeps all M."""
    one, all_of_them = (
        run(Backprop(order=order), 4, 8, activation=1000, size=0) for order in ("1f1b", "gpipe")
    )
    assert one.peak_bytes == (4000, 3000, 2000, 1000)
    assert all_of_them.peak_bytes == (8000,) * 4


def test_local_blocks_go_at_the_pace_of_the_slowest() -> None:
    slow = {("block2", Kind.ASSESS): 4.0}
    predicted = run(Local(), 4, of=slow)
    assert 1 / predicted.steps_per_second == pytest.approx(1.0 + 4.0)
    # Activations leave before the loss: the fill is a forward for each block before the last.
    assert predicted.completions[0] == pytest.approx(1.0 + 5.0)
    assert predicted.idle == pytest.approx([1 - 3 / 5, 0.0, 1 - 3 / 5, 1 - 3 / 5])


def test_the_fill_of_equal_local_blocks() -> None:
    predicted = run(Local(), 5)
    assert predicted.completions[0] == pytest.approx(4 * 1.0 + 3.0)
    assert predicted.completions[1] == pytest.approx(4 * 1.0 + 6.0)


@pytest.mark.parametrize("blocks", [2, 3, 4, 8])
@pytest.mark.parametrize("reach", [1, 2, 3, 8])
def test_a_step_of_n_wise_learning(reach: int, blocks: int) -> None:
    """The task loss's gradient goes through the last N blocks, N (f + b), whatever K is.

    Gradients of nearer losses are done while blocks wait for it: N b and f are less.
    """
    period = 1 / run(Interlocking(reach=reach), blocks).steps_per_second
    assert period == pytest.approx(3.0 * min(reach, blocks))


def test_bll_with_delay_never_waits_for_its_tables() -> None:
    seconds = {**times(1.0, 2.0, 0.5), Kind.TABLE: 0.5, Kind.READOUT: 0.5}
    # Feedback modules beside the blocks: on devices of their own they would not slow them down.
    predicted = run(BLL(), 4, seconds=seconds)
    busy = 1.0 + 2.0 + 0.5 + 0.5 + 0.5
    assert 1 / predicted.steps_per_second == pytest.approx(busy)
    assert predicted.idle[:3] == pytest.approx([0.0] * 3, abs=1e-9)


def test_bll_in_lockstep_waits() -> None:
    """At delay 0 block 1 waits in each step for the tables of all modules above it."""
    seconds = {**times(1.0, 2.0, 0.5), Kind.TABLE: 0.5, Kind.READOUT: 0.5}
    lockstep = run(BLL(feedback=FeedbackSettings(delay=0)), 4, seconds=seconds)
    assert 1 / lockstep.steps_per_second > 5.0


def test_a_window_holds_a_fast_block_back() -> None:
    """Block 1 is ten times as fast; it is never more than the window ahead."""
    fast = {("block1", Kind.FORWARD): 0.1, ("block1", Kind.ASSESS): 0.2}
    predicted = run(Local(), 2, of=fast, window=2, size=1000)
    ends = {
        (work.actor, work.operation.step): work.ended
        for work in predicted.work
        if work.operation.kind is Kind.FORWARD
    }
    starts = {
        (work.actor, work.operation.step): work.started
        for work in predicted.work
        if work.operation.kind is Kind.FORWARD
    }
    # A third message leaves when the first was taken.
    for step in range(2, 20):
        assert ends["block1", step] >= starts["block2", step - 2] - 1e-9
    assert ends["block1", 10] == pytest.approx(starts["block2", 8])
    assert predicted.peak_bytes[1] == 2 * 1000
    assert 1 / predicted.steps_per_second == pytest.approx(3.0)


@pytest.mark.parametrize(("window", "room"), [(1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3)])
def test_a_sender_that_met_a_full_window_waits_for_half_of_it(window: int, room: int) -> None:
    """Block 1 takes no time: after the first `window` messages, it sends `room` at a time."""
    fast = {("block1", Kind.FORWARD): 0.0, ("block1", Kind.ASSESS): 0.0}
    predicted = run(Local(), 2, of=fast, window=window, steps=30)
    forwards = [w for w in predicted.work if w.operation.kind is Kind.FORWARD]
    sent = [w.ended for w in forwards if w.actor == "block1"]
    taken = [w.started for w in forwards if w.actor == "block2"]
    assert sent[:window] == [0.0] * window
    for step in range(window, 30):
        oldest = (step - window) // room * room  # those it waits for are up to oldest + room - 1
        assert sent[step] == pytest.approx(taken[oldest + room - 1])
    assert 1 / predicted.steps_per_second == pytest.approx(3.0)


def test_a_sender_hears_of_room_after_the_latency() -> None:
    fast = {("block1", Kind.FORWARD): 0.0, ("block1", Kind.ASSESS): 0.0}
    cluster = FREE.model_copy(update={"between": slow_path(math.inf, 0.5)})
    predicted = run(Local(), 2, of=fast, window=4, steps=30, cluster=cluster)
    forwards = [w for w in predicted.work if w.operation.kind is Kind.FORWARD]
    sent = [w.ended for w in forwards if w.actor == "block1"]
    taken = [w.started for w in forwards if w.actor == "block2"]
    assert sent[4] == sent[5] == pytest.approx(taken[1] + 0.5)
