"""Bytes that are kept for backward passes, by who is at work when they are saved."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def persistent(owner: object) -> Iterator[Tensor]:
    """Parameters and buffers of the modules that an object holds; no backward pass adds them."""
    for module in vars(owner).values():
        if isinstance(module, nn.Module):
            yield from (*module.parameters(), *module.buffers())


class KeptMeter:
    """Counts what graphs keep, from when it is saved until the graph lets go of it.

    Attributes:
        peak: the most bytes kept at one time, by who was at work when they were saved.
    """

    def __init__(self, excluded: Iterable[Tensor]) -> None:
        """Follow nothing yet.

        Args:
            excluded: tensors whose storages are not counted: parameters and buffers.
        """
        self.peak: Counter[Any] = Counter()
        self._excluded = {tensor.untyped_storage().data_ptr() for tensor in excluded}
        self._live: Counter[Hashable] = Counter()
        self._holders: defaultdict[tuple[Hashable, int], int] = defaultdict(int)
        self._at: Hashable | None = None

    @contextmanager
    def at(self, who: Hashable) -> Iterator[None]:
        """What is saved inside is kept by `who`; what calls itself again stays the outer one's."""
        if self._at is not None:
            yield
            return
        self._at = who
        try:
            yield
        finally:
            self._at = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is kept for backward passes inside."""
        with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept.tensor):
            yield

    def restart(self) -> None:
        """Count anew; what is kept from before stays counted as kept."""
        self.peak = Counter(self._live)

    def _keep(self, tensor: Tensor) -> _Kept:
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        at = None if not address or address in self._excluded else self._at
        # Not `tensor` itself: an output that its own graph node holds would never be freed.
        return _Kept(self, at, tensor.detach(), address, storage.nbytes())

    def add(self, at: Hashable, address: int, size: int) -> None:
        """One more graph node keeps a storage."""
        self._holders[at, address] += 1
        if self._holders[at, address] == 1:
            self._live[at] += size
            self.peak[at] = max(self.peak[at], self._live[at])

    def remove(self, at: Hashable, address: int, size: int) -> None:
        """One graph node fewer keeps a storage."""
        self._holders[at, address] -= 1
        if not self._holders[at, address]:
            del self._holders[at, address]
            self._live[at] -= size


class _Kept:
    """A tensor kept for backward, counted until the graph lets go of it.

    It keeps the storage alive, so that its address names no other one meanwhile.
    """

    def __init__(
        self, meter: KeptMeter, at: Hashable | None, tensor: Tensor, address: int, size: int
    ) -> None:
        self.tensor, self._meter, self._at, self._of = tensor, meter, at, (address, size)
        if at is not None:
            meter.add(at, *self._of)

    def __del__(self) -> None:
        if self._at is not None:
            self._meter.remove(self._at, *self._of)
