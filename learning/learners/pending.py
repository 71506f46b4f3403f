"""What a block keeps of a shard between its forward pass and its last gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from learning.messages import Message


@dataclass
class Pending:
    """One shard between its forward pass and the last gradient that reaches it.

    Attributes:
        x: the block's input.
        h: its output, with the graph that leads from x and `parameters` to it.
        message: as it came: x, coded from block 2 on, labels `y`, what some rules send along.
        parameters: the block's parameters in the graph.
        expected: blocks whose loss's gradient is still to come.
        sources: blocks whose loss the parameters learn from, with weights.
        passed_back: blocks whose loss's gradient goes on to the block before.
        tail: how many of the last units later losses reach; None for all.
        moments: what the updater recorded in the forward pass.
    """

    x: Tensor
    h: Tensor
    message: Message
    parameters: list[Tensor]
    expected: list[int]
    sources: dict[int, float]
    passed_back: tuple[int, ...]
    tail: int | None
    moments: Sequence[Tensor | None]
