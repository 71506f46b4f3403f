"""A network that ends its process once, after its run's first checkpoint."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from torch import Tensor, nn


class Fragile(nn.Module):
    """Lets everything through; kills its process once, as soon as a file is there."""

    def __init__(self, waits_for: Path, marker: Path) -> None:
        super().__init__()
        self._waits_for, self._marker = waits_for, marker

    def forward(self, x: Tensor) -> Tensor:
        if self._waits_for.exists() and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return x


def build(waits_for: str, marker: str) -> nn.Sequential:
    """Two layers, and between them what may end the process."""
    fragile = Fragile(Path(waits_for), Path(marker))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), fragile, nn.Linear(16, 10))
