"""Weights as messages: a block's unit, read by another block's objective some steps later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from learning.messages import Key, Message, Post, block_name, outgoing
from learning.units import Unit


@dataclass(frozen=True)
class Reading:
    """What block `reader`'s objective reads: the state of one unit of another block.

    The weights are those at the start of a step; they are read (publisher - reader) steps later,
    at which nothing waits, so that the reader is never ahead of what it needs.

    Attributes:
        publisher: number of the block that owns the unit.
        unit: 0 for its first unit, -1 for its last.
        every: steps from one publication to the next.
    """

    reader: int
    publisher: int
    unit: int
    every: int = 1

    @property
    def delay(self) -> int:
        """Steps between publication and reading."""
        return abs(self.publisher - self.reader)

    def step_read(self, step: int) -> int | None:
        """The step whose publication is read at the start of `step`, if one is."""
        if step == 0:
            return 0
        published = step - self.delay
        return published if published > 0 and published % self.every == 0 else None


@dataclass(frozen=True)
class Publication:
    """The publisher's side of a reading."""

    reading: Reading

    def due(self, step: int) -> bool:
        """Whether weights are published at the start of `step`."""
        return step % self.reading.every == 0

    def post(self, units: Sequence[Unit], index: int, step: int) -> Post:
        """The message with the unit's state of `step`."""
        state = units[self.reading.unit].module.state_dict()
        # Copies: the update of this step must not change what is under way.
        message: Message = {name: outgoing(tensor.clone()) for name, tensor in state.items()}
        until = step + self.reading.delay if step > 0 else None
        key = Key("weights", step, 0, index)
        return Post(block_name(self.reading.reader), key, message, until)
