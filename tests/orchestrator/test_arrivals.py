"""What is asked of an actor that is on its way into a chain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.arrivals import Arrival


@pytest.mark.parametrize(("transport", "listens"), [("object_store", 0), ("direct", 1)])
def test_an_arrival_listens_where_messages_are_direct_only(transport: str, listens: int) -> None:
    asked: list[str] = []

    def call(what: str) -> Any:
        return lambda *_: asked.append(what)

    actor = SimpleNamespace(
        name="block1",
        start=call("start"),
        handle=SimpleNamespace(identify=SimpleNamespace(remote=call("identify"))),
    )
    place = SimpleNamespace(blocks=[1], is_there=lambda block: True)
    lane = SimpleNamespace(actors=[actor], placement=place)
    chain = SimpleNamespace(
        incarnation=1, patience=60, transport=transport, build=call("build"), listen=call("listen")
    )
    arrival: Any = Arrival(chain, lane)  # type: ignore[arg-type]
    assert not arrival.is_ready()
    assert not arrival.waits
    assert asked.count("listen") == listens
    assert asked.count("build") == 1
