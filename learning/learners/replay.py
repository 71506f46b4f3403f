"""Blocks that learn from a buffer of past inputs (asynchronous DGL).

Belilovsky et al. 2020, arXiv 1901.08164, and 2021, arXiv 2106.06401. Here the draws are a pure
function of (seed, block, step), so that a run can be repeated, resumed and distributed exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from learning.learners.base import partition_state
from learning.learners.block import BlockLearner
from learning.messages import Message


@dataclass
class ReplayingBlock(BlockLearner):
    """Puts each arriving message into its ring, then learns from, and sends on, one of the ring.

    Labels travel with the activations, so a replayed input keeps its own. Block 1 reads the data.

    Attributes:
        slots: messages in the ring; the oldest makes place for a new one.
    """

    slots: int = 1
    _ring: dict[int, Message] = field(default_factory=dict, init=False)
    _arrived: int = field(default=0, init=False)

    def _intake(self, step: int, shard: int, message: Message) -> Message:
        if self.index == 1:
            return message
        self._ring[self._arrived % self.slots] = message
        self._arrived += 1
        with self._seeded("replay", step, shard):
            return self._ring[int(torch.randint(len(self._ring), ()))]

    def state_dict(self) -> dict[str, Tensor]:
        state = super().state_dict()
        state["replay.arrived"] = torch.tensor(self._arrived)
        for place, message in self._ring.items():
            state |= {f"replay.{place}.{name}": t for name, t in message.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        parts = dict(partition_state(state)["replay"])
        self._arrived = int(parts.pop("arrived"))
        self._ring = {}
        for full_name, tensor in parts.items():
            place, name = full_name.split(".", 1)
            self._ring.setdefault(int(place), {})[name] = tensor.to(self.device, copy=True)
