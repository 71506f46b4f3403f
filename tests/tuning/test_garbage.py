"""What is kept out of garbage collection comes back into it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from tests.tuning.conftest import Make
from tests.tuning.reading import SEND
from tuning import garbage
from tuning.garbage import frozen_heap


class Node:
    """An object that can refer to itself."""

    me: Node | None = None


def circle() -> weakref.ref[Node]:
    """An object that only refers to itself: garbage, once this has returned."""
    node = Node()
    node.me = node
    return weakref.ref(node)


@pytest.fixture(autouse=True)
def nothing_frozen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "_sparing", 0)
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_was_there_is_collected_only_afterwards() -> None:
    gc.disable()  # or chance may collect it before
    try:
        before = circle()
        with frozen_heap():
            gc.collect()
            assert before() is not None
            new = circle()
            gc.collect()
            assert new() is None
        gc.collect()
        assert before() is None
    finally:
        gc.enable()


def test_the_last_who_asked_gives_all_back() -> None:
    first, second = frozen_heap(), frozen_heap()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert gc.get_freeze_count()
    second.__exit__(None, None, None)
    assert not gc.get_freeze_count()


def test_what_somebody_else_has_frozen_stays() -> None:
    gc.freeze()
    count = gc.get_freeze_count()
    with frozen_heap():
        assert gc.get_freeze_count() == count
    assert gc.get_freeze_count() == count


def test_metrics_are_sent_without_long_pauses(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []

    def send(client: MlflowClient, run_id: str, **given: Any) -> None:
        frozen.append(gc.get_freeze_count())
        SEND(client, run_id, **given)

    tracker = make()
    monkeypatch.setattr(MlflowClient, "log_batch", send)
    tracker.log_metrics(0, {"a": 0.0})
    assert tracker.end() == 0
    assert frozen and all(frozen)
    assert not gc.get_freeze_count()
