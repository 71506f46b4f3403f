"""A trial's thread: it waits at each report, finishes what is done, and ends when it is told to."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from learning.errors import UserError
from orchestrator.trainer import StopTraining
from tuning.jobs import FAILED, STEP, Job, Listener, Request
from tuning.life import Life
from tuning.trial import values_of

METRIC = "validation/accuracy"
REQUEST = Request(0, {}, Path("nowhere"), None, told=0)


def job(run: Any) -> Job:
    return Job(run, Path("nowhere"), {}, METRIC, worst=0.0)


def test_training_waits_until_it_is_asked_for_more() -> None:
    went_on = threading.Event()

    def run(request: Request, listener: Listener) -> None:
        listener.tell(10, {METRIC: 0.5}, False)
        went_on.set()
        listener.tell(20, {METRIC: 0.7}, True)

    life = Life(job(run), REQUEST)
    assert life.next() == {STEP: 10, METRIC: 0.5}
    assert not went_on.wait(0.05)
    assert life.next() == {STEP: 20, METRIC: 0.7, "done": True}
    life.end()


def test_what_is_done_has_finished() -> None:
    """Tune stops a trial at once when it is done: its run must have been closed by then."""
    finished = []

    def run(request: Request, listener: Listener) -> None:
        listener.tell(10, {METRIC: 0.5}, True)
        finished.append(True)

    life = Life(job(run), REQUEST)
    assert life.next()["done"] and finished
    life.end()


def test_a_trial_that_is_stopped_ends_by_stop_training() -> None:
    seen: list[BaseException] = []

    def run(request: Request, listener: Listener) -> None:
        try:
            listener.tell(10, {METRIC: 0.5}, False)
        except BaseException as error:
            seen.append(error)
            raise

    life = Life(job(run), REQUEST)
    life.next()
    life.end()
    assert [type(error) for error in seen] == [StopTraining]
    assert not life._thread.is_alive()


def test_a_trial_is_stopped_in_the_middle_too() -> None:
    """Evaluations may be far apart."""
    begun = threading.Event()

    def run(request: Request, listener: Listener) -> None:
        begun.set()
        while True:
            listener.check()

    life = Life(job(run), REQUEST)
    assert begun.wait(10)
    life.end()
    assert not life._thread.is_alive()


def test_what_cannot_be_trained_is_done_with_a_sentence_and_the_worst_value() -> None:
    def run(request: Request, listener: Listener) -> None:
        listener.tell(10, {METRIC: 0.5, "validation/loss": 2.0}, False)
        raise UserError("the loss is nan")

    life = Life(job(run), REQUEST)
    life.next()
    told = life.next()
    assert (told[FAILED], told[METRIC], told["done"], told[STEP]) == (
        "the loss is nan",
        0.0,
        True,
        10,
    )
    life.end()


def test_other_failures_are_raised_so_that_the_trial_is_tried_again() -> None:
    def run(request: Request, listener: Listener) -> None:
        raise ConnectionError("gone")

    life = Life(job(run), REQUEST)
    with pytest.raises(ConnectionError):
        life.next()
    life.end()


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"validation/loss": 1.0}, "this run has no validation/accuracy: choose a sweep.metric"),
        ({METRIC: float("nan")}, "validation/accuracy is nan after 10 steps: leave these values"),
    ],
)
def test_a_run_without_the_metric_has_failed(metrics: dict[str, float], said: str) -> None:
    life = Life(job(lambda request, listener: listener.tell(10, metrics, False)), REQUEST)
    assert said in life.next()[FAILED]
    life.end()


def test_what_tune_says_goes_over_what_was_known() -> None:
    points = {3: {"optimizer.lr": 0.1, "rule.kind": "bll"}}
    assert values_of({"trial": 3}, points) == points[3]
    assert values_of({"trial": 3, "optimizer.lr": 0.2}, points)["optimizer.lr"] == 0.2
    assert values_of({"trial": 4, "a": 1}, points) == {"a": 1}
    # After a takeover all that does not change is the donor's too.
    taken = values_of({"trial": 4, "like": 3, "optimizer.lr": 0.3}, {4: {}, **points})
    assert taken == {"optimizer.lr": 0.3, "rule.kind": "bll"}
