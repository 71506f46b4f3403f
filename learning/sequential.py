"""The sequential engine: any rule's program in one process and one thread of control.

It is the definition of correct. Everything distributed must end with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Tensor

from learning.build import Program, build_block, build_feedback
from learning.feedback import table_step
from learning.messages import Message
from learning.units import Unit

Metrics = dict[str, dict[str, float]]
"""By learner (`block1`, `feedback1`, ...), then by metric."""

ShardOf = Callable[[int, int], tuple[Tensor, Tensor]]
"""(step, shard) to inputs (b, ...) and labels (b,)."""


class SequentialEngine:
    """All blocks and feedback modules of a program, run one operation after the other."""

    def __init__(self, program: Program, blocks: Sequence[Sequence[Unit]]) -> None:
        self.program = program
        self.blocks = [build_block(program, k, u) for k, u in enumerate(blocks, start=1)]
        self.feedback = {
            k: build_feedback(program, k) for k in range(1, program.feedback_modules + 1)
        }
        self._tables: dict[tuple[int, int], Message] = {}

    def train_step(self, step: int, shard_of: ShardOf) -> Metrics:
        """One optimizer update of every block from one global batch."""
        used = table_step(step, self.program.feedback_delay)
        self._tables = {key: table for key, table in self._tables.items() if key[1] >= used}
        for k, message in self._feedback_tables(step).items():
            self._tables[k, step] = message
        tables = self._tables_at(step)
        for shard in range(self.program.settings.shards):
            x, y = shard_of(step, shard)
            self._forward(step, shard, {"x": x, "y": y}, tables)
            self._backward(step, shard, tables)
        metrics = {f"block{b.index}": b.update(step) for b in self.blocks}
        metrics |= {f"feedback{k}": f.update(step) for k, f in self.feedback.items()}
        return metrics

    def _feedback_tables(self, step: int) -> dict[int, Message]:
        tables: dict[int, Message] = {}
        upstream: Message | None = None
        for k in sorted(self.feedback, reverse=True):
            source = upstream if self.program.feedback_chain else None
            tables[k], upstream = self.feedback[k].forward(step, source)
        return tables

    def _tables_at(self, step: int) -> Mapping[int, Message]:
        used = table_step(step, self.program.feedback_delay)
        return {k: self._tables[k, used] for k in self.feedback}

    def _forward(
        self, step: int, shard: int, message: Message, tables: Mapping[int, Message]
    ) -> None:
        for block in self.blocks:
            on = block.forward(step, shard, message, tables.get(block.index))
            if on is not None:
                message = on

    def _backward(self, step: int, shard: int, tables: Mapping[int, Message]) -> None:
        arriving: list[tuple[int, Message]] = []
        for block in reversed(self.blocks):
            leaving: list[tuple[int, Message]] = []
            if block.objective is not None:
                back, readout = block.assess(step, shard, tables.get(block.index))
                if back is not None:
                    leaving.append((block.index, back))
                if readout is not None:
                    self.feedback[block.index].receive(step, shard, readout)
            for origin, message in arriving:
                back = block.receive(shard, origin, message["gradient"])
                if back is not None:
                    leaving.append((origin, back))
            arriving = leaving

    def evaluate(self, step: int, split: str, batches: Iterator[tuple[Tensor, Tensor]]) -> Metrics:
        """Loss and accuracy of every block's own objective, with the weights after `step`."""
        tables = self._tables_at(step) if self.feedback else {}
        for x, y in batches:
            message: Message = {"x": x, "y": y}
            for block in self.blocks:
                message = block.infer(split, message, tables.get(block.index))
        return {f"block{b.index}": m for b in self.blocks if (m := b.end_evaluation(split))}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The state of every learner by name, as checkpoints hold it."""
        state = {f"block{b.index}": b.state_dict() for b in self.blocks}
        return state | {f"feedback{k}": f.state_dict() for k, f in self.feedback.items()}

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]], step: int) -> None:
        """Load a state taken after step `step - 1`; training goes on at `step`."""
        for block in self.blocks:
            block.load_state_dict(state[f"block{block.index}"])
        for k, feedback in self.feedback.items():
            feedback.load_state_dict(state[f"feedback{k}"])
            for sent, message in feedback.pending_tables(step):
                self._tables[k, sent] = message
