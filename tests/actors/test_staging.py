"""Copies and work on a device are in order, by streams that only write down what they are told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from actors.staging import Staging
from tests.actors.buffers import Counted, allocate


class FakeCuda:
    """Stands in for torch.cuda: records what is asked of streams and events, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[str] = []
        self.pending: list[Any] = []
        fake, names = self, iter(["sending", "receiving"])

        class Stream:
            def __init__(self, device: Any = None, name: str = "") -> None:
                self.name = name or next(names)

            def wait_stream(self, other: Stream) -> None:
                fake.told.append(f"{self.name} waits for {other.name}")

            def wait_event(self, event: Event) -> None:
                fake.told.append(f"{self.name} waits for {event.name}")

        class Event:
            def __init__(self, blocking: bool = False) -> None:
                self.done, self.name = False, ""
                fake.pending.append(self)

            def record(self, stream: Stream) -> None:
                self.name = f"event on {stream.name}"
                fake.told.append(self.name)

            def synchronize(self) -> None:
                self.done = True
                fake.told.append(f"thread waits for {self.name}")

            def query(self) -> bool:
                return self.done

        compute = Stream(name="compute")

        @contextlib.contextmanager
        def within(stream: Stream) -> Iterator[None]:
            fake.told.append(f"on {stream.name}")
            yield
            fake.told.append(f"off {stream.name}")

        def record_stream(tensor: torch.Tensor, stream: Stream) -> None:
            fake.told.append(f"kept for {stream.name}")

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", within)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: compute)
        monkeypatch.setattr(torch.cuda, "default_stream", lambda device: compute)
        monkeypatch.setattr(torch.Tensor, "record_stream", record_stream)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


def test_fetching_waits_for_the_work_and_for_its_own_copies_only(cuda: FakeCuda) -> None:
    way = Staging(torch.device("cpu"), allocate)
    tensors = {"x": torch.randn(3, 2), "y": torch.arange(5), "s": torch.tensor(2.0)}
    arrays = way.fetch(tensors)
    assert cuda.told == [
        "sending waits for compute",
        "on sending",
        *["kept for sending"] * 3,
        "event on sending",
        "off sending",
        "thread waits for event on sending",
    ]
    assert list(arrays) == ["x", "y", "s"]
    for name, tensor in tensors.items():
        assert np.array_equal(arrays[name], tensor.numpy())
        assert arrays[name].shape == tuple(tensor.shape)
        assert arrays[name].__array_interface__["data"][0] != tensor.data_ptr()


def test_uploaded_tensors_are_waited_for_by_the_device_not_by_the_thread(cuda: FakeCuda) -> None:
    way = Staging(torch.device("cpu"), allocate)
    tensors = {"x": torch.randn(3, 2), "e": torch.empty(3, 0, 2), "b": torch.tensor([True, False])}
    there = way.upload(tensors)
    assert cuda.told == [
        "on receiving",
        "event on receiving",
        "off receiving",
        "compute waits for event on receiving",
        *["kept for compute"] * 3,
    ]
    for name, tensor in tensors.items():
        assert torch.equal(there[name], tensor)


def test_received_buffers_wait_for_the_copy_to_the_device(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    way = Staging(torch.device("cpu"), counted)
    for _ in range(3):
        way.upload({"x": torch.randn(8)})
    assert counted.sizes == [32, 32, 32]  # none of the copies is known to be done
    for event in cuda.pending:
        event.done = True
    for _ in range(3):
        way.upload({"x": torch.randn(8)})
    assert counted.sizes == [32, 32, 32]


def test_fetched_buffers_are_used_again_when_the_arrays_are_gone(cuda: FakeCuda) -> None:
    counted = Counted()
    way = Staging(torch.device("cpu"), counted)
    kept = way.fetch({"x": torch.full((4,), 1.0)})
    for value in range(2, 6):
        arrays = way.fetch({"x": torch.full((4,), float(value))})
        assert arrays["x"].tolist() == [value] * 4
        del arrays
    assert kept["x"].tolist() == [1.0] * 4
    assert counted.sizes == [16, 16]
