"""Between host and GPU: pinned buffers that are used again, and copies on streams of their own.

    thread      side stream                     default stream: what the block computes on
    ------      -----------                     ------------------------------------------
    fetch       waits for the work so far ◀──── the work that makes the tensors
                copies to pinned memory         goes on with what is queued after it
                event ──▶ the thread waits
    upload      copies from pinned memory
                event ────────────────────────▶ waits for it, then reads the tensors

The invariants, each kept at the line that says so:

1. a buffer is written to only when its last copy has finished and nobody reads it;
2. what `fetch` returns is complete: its memory is the reader's, until the last reader drops it;
3. a tensor of `upload` is read only after its copy, and its memory is given to nobody else while
   the default stream may still read it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from learning.messages import Message
from learning.policies.compiled import CAPTURING


class Completion(Protocol):
    """Something that is queued on a device, such as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether it is done."""
        ...


class BufferPool:
    """Host buffers, uint8 (size,), handed out again when nothing uses them any more.

    A run has few sizes of messages, so buffers are kept by their exact size, and there are never
    more of a size than were in use at once. Without locks: buffers come back from finalizers, which
    may run in any thread in the middle of anything; operations of dict and deque are atomic.

    Args:
        allocate: makes a buffer of so many bytes.
    """

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self._allocate = allocate
        self._free: dict[int, deque[tuple[Tensor, Completion | None]]] = {}

    def take(self, size: int) -> Tensor:
        """A buffer of `size` bytes that is the caller's until `give_back`."""
        free = self._free.setdefault(size, deque())
        try:
            buffer, copied = free.popleft()
        except IndexError:
            return self._allocate(size)
        if copied is None or copied.query():
            return buffer
        # Buffers come back in the order of their copies: where the oldest is busy, all are.
        free.appendleft((buffer, copied))
        return self._allocate(size)

    def give_back(self, buffer: Tensor, copied: Completion | None = None) -> None:
        """Let others have a buffer; `copied` tells when a copy from it, still queued, is done."""
        self._free.setdefault(buffer.numel(), deque()).append((buffer, copied))


def lend(pool: BufferPool, buffer: Tensor, filled: Tensor) -> np.ndarray:
    """The array of a tensor in a pool's buffer, which comes back when nobody reads the array.

    Readers may keep the array, views of it, or tensors and memoryviews over it: all of these hold
    the array itself. Whether a transport is done with it when its call returns does not matter.
    (Ray is: it copies arguments into shared memory, or into the call, before `.remote()` returns.)
    """
    array = filled.numpy()
    weakref.finalize(array, pool.give_back, buffer).atexit = False
    return array


class Staging:
    """The way of tensors to one GPU and back; threads may use it at the same time.

    Two streams, because what is sent waits for the block's work and what arrives must not.
    """

    def __init__(self, device: torch.device, allocate: Callable[[int], Tensor]) -> None:
        self._device = device
        self._to_send, self._received = BufferPool(allocate), BufferPool(allocate)
        self._sending = torch.cuda.Stream(device)
        self._receiving = torch.cuda.Stream(device)

    def fetch(self, tensors: Message) -> dict[str, np.ndarray]:
        """Copy contiguous tensors on the device, made by this thread, to arrays on the host.

        Returns when the copies are done. Runs on the program's thread, which is also the one that
        records CUDA graphs, so it needs no lock against that.
        """
        filled: list[tuple[Tensor, Tensor]] = []
        # The copies wait for the work that made the tensors, not for what is queued after it.
        self._sending.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._sending):
            for tensor in tensors.values():
                buffer = self._to_send.take(tensor.nbytes)
                filled.append((buffer, _view(buffer, tensor).copy_(tensor, non_blocking=True)))
                tensor.record_stream(self._sending)  # should an error drop it before the copy
            # A thread that spins would hold the core which the mail threads need.
            copied = torch.cuda.Event(blocking=True)
            copied.record(self._sending)
        copied.synchronize()  # invariant 2; only these copies, whatever else is queued
        lent = [lend(self._to_send, *both) for both in filled]
        return dict(zip(tensors, lent, strict=True))

    def upload(self, tensors: Message) -> Message:
        """Copy contiguous tensors on the host to the device; runs on mail threads.

        Returns at once: the block's own stream waits for the copies.
        """
        with CAPTURING:  # a first buffer is pinned, others ask their event
            buffers = [self._received.take(tensor.nbytes) for tensor in tensors.values()]
        staged = [
            _view(buffer, tensor).copy_(tensor)
            for buffer, tensor in zip(buffers, tensors.values(), strict=True)
        ]
        with CAPTURING:
            with torch.cuda.stream(self._receiving):
                # Memory of this stream, not of the default one: what is free there may still be
                # read by queued work, for which the copies would have to wait.
                there = [s.to(self._device, non_blocking=True) for s in staged]
                arrived = torch.cuda.Event()
                arrived.record(self._receiving)
            # Blocks compute on the default stream. It is told here, before the program's thread
            # can see the tensors, so all work that reads them is queued after the copies.
            computing = torch.cuda.default_stream(self._device)
            computing.wait_event(arrived)
            for tensor in there:
                tensor.record_stream(computing)  # invariant 3
        for buffer in buffers:
            self._received.give_back(buffer, arrived)  # invariant 1
        return dict(zip(tensors, there, strict=True))


def _view(buffer: Tensor, like: Tensor) -> Tensor:
    """A buffer as a tensor of another's type and shape."""
    return buffer.view(like.dtype).view(like.shape)


def _pinned(size: int) -> Tensor:
    # Nothing to copy needs no pinning, and CUDA pins no empty memory.
    return torch.empty(size, dtype=torch.uint8, pin_memory=size > 0)


_stagings: dict[torch.device, Staging] = {}
_making = threading.Lock()


def staging(device: torch.device) -> Staging:
    """The staging of a GPU, made at its first use."""
    with _making:
        if device not in _stagings:
            _stagings[device] = Staging(device, _pinned)
        return _stagings[device]
