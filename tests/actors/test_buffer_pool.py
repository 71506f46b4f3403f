"""Buffers are handed out only when nothing uses them."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st

from actors import wire
from actors.staging import BufferPool, lend
from tests.actors.buffers import Counted, allocate


class Copy:
    """A copy that is under way until it is told otherwise."""

    def __init__(self) -> None:
        self.done = False

    def query(self) -> bool:
        return self.done


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["take", "back", "copying", "done"]), st.integers(0, 30)),
    max_size=60,
)


@given(ACTIONS)
def test_no_buffer_is_handed_out_while_it_is_used(actions: list[tuple[str, int]]) -> None:
    """Any order of takes, returns and copies that end in the order in which they began."""
    counted = Counted()
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
        assert counted.sizes.count(size) == limit


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
