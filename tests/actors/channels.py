"""What the tests of messages over sockets share."""

from __future__ import annotations

import threading

import torch

from actors.mailbox import Mailbox

SECRET = b"of this run"
CPU = torch.device("cpu")


class Told(Mailbox):
    """Says when it has failed."""

    def __init__(self) -> None:
        super().__init__()
        self.told = threading.Event()
        self.when_failed(self.told.set)


def message(value: float, size: int = 3) -> dict[str, torch.Tensor]:
    return {"x": torch.full((size,), float(value))}
