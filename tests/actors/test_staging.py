"""Buffers are handed out only when nothing uses them; copies and work on a device are in order."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import staging, wire
from actors.staging import BufferPool, Staging, lend


class Copy:
    """A copy that is under way until it is told otherwise."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


def allocate(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


# --- the pool -----------------------------------------------------------------------------------

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "back", "copying", "done"]), st.integers(0, 30)),
    max_size=60,
)


@given(ACTIONS)
def test_no_buffer_is_handed_out_while_it_is_used(actions: list[tuple[str, int]]) -> None:
    """Any order of takes, returns and copies that end in the order in which they began."""
    made: list[int] = []

    def counted(size: int) -> torch.Tensor:
        made.append(size)
        return allocate(size)

    pool = BufferPool(counted)
    held: list[torch.Tensor] = []
    copies: list[tuple[int, Copy]] = []  # by address, oldest first
    most = {8: 0, 16: 0}
    for action, number in actions:
        busy = {address for address, copy in copies if not copy.done}
        if action == "take":
            size = 8 if number % 2 else 16
            buffer = pool.take(size)
            assert buffer.numel() == size
            assert buffer.data_ptr() not in {b.data_ptr() for b in held} | busy
            held.append(buffer)
        elif action == "done":
            for _, copy in copies[: number % 4]:
                copy.done = True
            copies = [c for c in copies if not c[1].done]
        elif held:
            buffer = held.pop(number % len(held))
            copy = Copy() if action == "copying" else None
            if copy:
                copies.append((buffer.data_ptr(), copy))
            pool.give_back(buffer, copy)
        for size in most:
            in_use = sum(b.numel() == size for b in held)
            # A finished buffer behind one that is busy counts as used: the pool looks at one only.
            waiting = sum(len(pool._free[s]) for s in pool._free if s == size)
            most[size] = max(most[size], in_use + waiting)
    for size, limit in most.items():
        assert made.count(size) == limit


def test_a_buffer_is_used_again_when_its_copy_is_done() -> None:
    pool, copy = BufferPool(allocate), Copy()
    first = pool.take(8)
    pool.give_back(first, copy)
    second = pool.take(8)
    assert second.data_ptr() != first.data_ptr()
    pool.give_back(second)
    copy.done = True
    assert pool.take(8).data_ptr() == first.data_ptr()
    assert pool.take(8).data_ptr() == second.data_ptr()
    assert pool.take(16).numel() == 16


@pytest.mark.parametrize(
    "reader",
    [
        lambda array: array,
        lambda array: array[1:],
        lambda array: array.reshape(-1).view(np.int16),
        memoryview,
        torch.from_numpy,
        lambda array: torch.from_numpy(array).view(-1)[3:],
    ],
    ids=["itself", "slice", "view of a view", "memoryview", "tensor", "view of a tensor"],
)
def test_a_lent_buffer_comes_back_with_its_last_reader(reader: Any) -> None:
    pool = BufferPool(allocate)
    buffer = pool.take(16)
    address = buffer.data_ptr()
    array = lend(pool, buffer, buffer.view(torch.float32).view(2, 2))
    reading = reader(array)
    del array, buffer
    gc.collect()
    assert pool.take(16).data_ptr() != address
    del reading
    gc.collect()
    assert pool.take(16).data_ptr() == address


def test_threads_never_share_a_buffer() -> None:
    pool, wrong = BufferPool(allocate), []

    def work(mark: int) -> None:
        for _ in range(2000):
            buffer = pool.take(64)
            buffer.fill_(mark)
            if not bool((buffer == mark).all()):
                wrong.append(mark)
            pool.give_back(buffer)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(pool._free[64]) <= 4


class _Keeper:
    """An actor that keeps what it is sent."""

    def __init__(self) -> None:
        self.arrays: list[wire.Arrays] = []

    def keep(self, arrays: wire.Arrays) -> None:
        self.arrays.append(arrays)

    def sums(self) -> list[float]:
        return [float(a["x"].sum()) for a in self.arrays]


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("size", [64, 1 << 20], ids=["inlined", "in shared memory"])
def test_ray_has_copied_the_arguments_when_its_call_returns(size: int) -> None:
    """A buffer is back after the call, before anyone has run it, and may be written to."""
    pool = BufferPool(allocate)
    keeper: Any = ray.remote(_Keeper).options(num_cpus=0).remote()
    try:
        addresses, returned = set(), []
        for value in range(5):
            buffer = pool.take(size * 4)
            addresses.add(buffer.data_ptr())
            filled = buffer.view(torch.float32).fill_(value)
            array = lend(pool, buffer, filled)
            returned.append(weakref.ref(array))
            arrays = {"x": array}
            del array, buffer, filled
            keeper.keep.remote(arrays)
            arrays.clear()
        gc.collect()
        assert not any(r() is not None for r in returned)
        assert len(addresses) == 1
        sums = ray.get(keeper.sums.remote())
        assert sums == [float(v * size) for v in range(5)]
    finally:
        ray.kill(keeper)


# --- order on the device, with streams that only write down what they are told ---------------


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
    sizes: list[int] = []

    def counted(size: int) -> torch.Tensor:
        sizes.append(size)
        return allocate(size)

    way = Staging(torch.device("cpu"), counted)
    for _ in range(3):
        way.upload({"x": torch.randn(8)})
    assert sizes == [32, 32, 32]  # none of the copies is known to be done
    for event in cuda.pending:
        event.done = True
    for _ in range(3):
        way.upload({"x": torch.randn(8)})
    assert sizes == [32, 32, 32]


def test_fetched_buffers_are_used_again_when_the_arrays_are_gone(cuda: FakeCuda) -> None:
    sizes: list[int] = []

    def counted(size: int) -> torch.Tensor:
        sizes.append(size)
        return allocate(size)

    way = Staging(torch.device("cpu"), counted)
    kept = way.fetch({"x": torch.full((4,), 1.0)})
    for value in range(2, 6):
        arrays = way.fetch({"x": torch.full((4,), float(value))})
        assert arrays["x"].tolist() == [value] * 4
        del arrays
    assert kept["x"].tolist() == [1.0] * 4
    assert sizes == [16, 16]


# --- on a real device --------------------------------------------------------------------------

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def gpu(test: Any) -> Any:
    for mark in on_gpu:
        test = mark(test)
    return test


@gpu
def test_pinned_buffers_are_used_again_on_a_gpu() -> None:
    device = torch.device("cuda:0")
    way = Staging(device, staging._pinned)
    x = torch.randn(1000, device=device)
    addresses = set()
    for _ in range(20):
        arrays = way.fetch({"x": x})
        addresses.add(arrays["x"].__array_interface__["data"][0])
        assert torch.from_numpy(arrays["x"]).is_pinned()
        there = way.upload({"x": torch.from_numpy(arrays["x"])})["x"]
        assert torch.equal(there, x)
        torch.cuda.synchronize()
        del arrays
    assert len(addresses) == 1
    assert [len(free) for free in way._received._free.values()] == [1]


@gpu
def test_many_messages_from_many_threads_arrive_whole_while_the_device_computes() -> None:
    """Mail threads upload while the default stream is busy; it reads what belongs to each key."""
    device = torch.device("cuda:0")
    way = Staging(device, staging._pinned)
    arrived: dict[int, torch.Tensor] = {}
    ready = threading.Condition()

    def deliver(numbers: range) -> None:
        for i in numbers:
            size = 1 + (i * 7919) % 200_000
            there = way.upload({"x": torch.full((size,), float(i))})["x"]
            with ready:
                arrived[i] = there
                ready.notify_all()

    threads = [threading.Thread(target=deliver, args=(range(t, 400, 4),)) for t in range(4)]
    for thread in threads:
        thread.start()
    a = torch.randn(1024, 1024, device=device)
    checks = []
    for i in range(400):
        with ready:
            assert ready.wait_for(lambda i=i: i in arrived, timeout=60)
            x = arrived.pop(i)
        a = (a @ a) / 1024  # keeps the default stream behind the copies
        checks.append(torch.stack([x.min(), x.max()]))
        del x  # its memory may go to the next upload, but not before the two lines above ran
    for thread in threads:
        thread.join()
    found = torch.stack(checks).cpu()
    assert torch.equal(found, torch.arange(400.0)[:, None].expand(400, 2))


@gpu
def test_what_was_fetched_stays_while_the_tensor_is_overwritten() -> None:
    device = torch.device("cuda:0")
    way = Staging(device, staging._pinned)
    x = torch.zeros(1 << 20, device=device)
    kept = []
    for i in range(30):
        x.fill_(i)
        kept.append(way.fetch({"x": x})["x"])
        x.fill_(-1)
    assert all((array == i).all() for i, array in enumerate(kept))
