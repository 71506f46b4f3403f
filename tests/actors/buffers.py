"""Host memory for the tests of staging."""

from __future__ import annotations

import torch


def allocate(size: int) -> torch.Tensor:
    return torch.zeros(size, dtype=torch.uint8)


class Counted:
    """Allocates, and writes down how much each time."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, size: int) -> torch.Tensor:
        self.sizes.append(size)
        return allocate(size)
