"""Copies from and to a real device, while it computes."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from actors import staging
from actors.staging import Staging

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
            assert ready.wait_for(lambda i=i: i in arrived, timeout=600)
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
