"""What torch allocates, storage by storage, while it is alive."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations allocate, from their first tensor to their end.

    Attributes:
        peak: the most bytes alive at once.
        gradients: the most bytes alive at the beginning of an update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.gradients = 0
        self._live: dict[int, int] = {}

    def before_update(self) -> None:
        """All activations are gone; what is alive are gradients."""
        self.gradients = max(self.gradients, sum(self._live.values()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {s.data_ptr() for s in _storages((args, kwargs))}
        for storage in _storages(out):
            at, size = storage.data_ptr(), storage.nbytes()
            # Views and in-place results live in storages that are known, or were there before.
            if size and at not in given and at not in self._live:
                self._live[at] = size
                weakref.finalize(storage, self._live.pop, at)
        self.peak = max(self.peak, sum(self._live.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
