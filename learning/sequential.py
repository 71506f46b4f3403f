"""The sequential engine: any rule's program in one process and one thread of control.

It is the definition of correct. Everything distributed must end with the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor

from learning.build import Program, build_block, build_feedback
from learning.learners.block import BlockLearner
from learning.learners.feedback import FeedbackLearner, table_step
from learning.messages import Key, Message, Post, block_name, feedback_name
from learning.policies.outer import agree
from learning.units import Unit

Metrics = dict[str, dict[str, float]]
"""By learner (`block1`, `feedback1`, ...), then by metric."""

ShardOf = Callable[[int, int], tuple[Tensor, Tensor]]
"""(step, shard) to inputs (b, ...) and labels (b,)."""


class SequentialEngine:
    """All blocks and feedback modules of a program, run one operation after the other."""

    def __init__(self, program: Program, blocks: Sequence[Sequence[Unit]]) -> None:
        self.program = program
        later = [blocks[k:] if program.rule.looks_ahead else () for k in range(1, len(blocks) + 1)]
        self.blocks = [
            build_block(program, k, units, later=after)
            for k, (units, after) in enumerate(zip(blocks, later, strict=True), start=1)
        ]
        self.feedback = {
            k: build_feedback(program, k) for k in range(1, program.feedback_modules + 1)
        }
        self._mail: dict[tuple[str, Key], Message] = {}

    def train_step(self, step: int, shard_of: ShardOf) -> Metrics:
        """One optimizer update of every block from one global batch."""
        self.tell(step)
        for shard in range(self.program.settings.shards):
            self.forward(step, shard, *shard_of(step, shard))
            self.backward(step, shard)
        metrics = {name: learner.update(step) for name, learner in self.learners.items()}
        for learner in self.learners.values():
            agree(step, [learner.outer])
        return metrics

    @property
    def learners(self) -> dict[str, BlockLearner | FeedbackLearner]:
        """All learners by name."""
        blocks = {block_name(b.index): b for b in self.blocks}
        return {**blocks, **{feedback_name(k): f for k, f in self.feedback.items()}}

    def tell(self, step: int) -> None:
        """What blocks are told before a step: tables of labels, weights of other blocks."""
        for k in sorted(self.feedback, reverse=True):
            top = k == self.program.feedback_modules or not self.program.feedback_chain
            self._post(
                self.feedback[k].forward(
                    step, None if top else self._take(feedback_name(k), Key("raw", step))
                )
            )
        used = table_step(step, self.program.feedback_delay)
        self._mail = {
            (to, key): message
            for (to, key), message in self._mail.items()
            if key.what != "table" or key.step >= used
        }
        for block in self.blocks:
            self._post(block.publish(step))
        for block in self.blocks:
            reading = block.reading
            if reading is not None and (read := reading.step_read(step)) is not None:
                key = Key("weights", read, 0, reading.publisher)
                block.read(self._take(block_name(block.index), key))

    def forward(self, step: int, shard: int, x: Tensor, y: Tensor) -> None:
        """Run a shard, inputs (b, ...) and labels (b, ...), forward through all blocks."""
        self._post([Post(block_name(1), Key("x", step, shard), {"x": x, "y": y})])
        for block in self.blocks:
            message = self._take(block_name(block.index), Key("x", step, shard))
            self._post(block.forward(step, shard, message, self._table(block, step)))

    def backward(self, step: int, shard: int) -> None:
        """Let the losses of a shard reach the blocks and feedback modules."""
        hop = self.program.rule.credit.at(step)
        for block in reversed(self.blocks):
            k, old = block.index, step - block.delay
            if old < 0:
                continue
            for origin in hop.reaching(k, self.program.blocks):
                if origin == k:
                    self._post(block.assess(step, shard, self._table(block, step)))
                else:
                    message = self._take(block_name(k), Key("g", old, shard, origin))
                    self._post(block.receive(old, shard, origin, message))
            if k in self.feedback:
                readout = self._take(feedback_name(k), Key("readout", step, shard))
                self.feedback[k].receive(step, shard, readout)

    def _table(self, block: BlockLearner, step: int) -> Message | None:
        used = table_step(step, self.program.feedback_delay)
        return (
            self._mail[block_name(block.index), Key("table", used)]
            if block.needs_feedback
            else None
        )

    def _post(self, posts: Iterable[Post]) -> None:
        for post in posts:
            assert (post.to, post.key) not in self._mail
            self._mail[post.to, post.key] = post.message

    def _take(self, to: str, key: Key) -> Message:
        return self._mail.pop((to, key))

    def evaluate(self, step: int, split: str, batches: Iterator[tuple[Tensor, Tensor]]) -> Metrics:
        """Loss and accuracy of every block's own objective, with the weights after `step`."""
        for x, y in batches:
            message: Message = {"x": x, "y": y}
            for block in self.blocks:
                message = block.infer(split, message, self._table(block, step))
        return {block_name(b.index): m for b in self.blocks if (m := b.end_evaluation(split))}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The state of every learner by name, as checkpoints hold it."""
        return {name: learner.state_dict() for name, learner in self.learners.items()}

    def load_state_dict(self, state: Mapping[str, dict[str, Tensor]], step: int) -> None:
        """Load a state taken after step `step - 1`; training goes on at `step`."""
        self._mail.clear()
        for name, learner in self.learners.items():
            learner.load_state_dict(state[name])
            self._post(learner.in_flight.from_step(step))
