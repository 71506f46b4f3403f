"""Several lanes in one process: the reference for lanes on actors.

A lane is one full copy of the chain of blocks and of the feedback modules. The lanes share a step's
shards: each runs its own forward and backward, tells the others what they come to, and updates with
what all of them have. All lanes end a step in the same state, that of a single lane, bit for bit.

With outer steps each lane updates with its own shards, and only after every so many steps do all
lanes take the same parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from learning.build import Program
from learning.messages import Message
from learning.policies.outer import agree
from learning.policies.tree import shares
from learning.sequential import Metrics, SequentialEngine, ShardOf
from learning.units import Unit, copied


class LaneEngine:
    """A sequential engine for each lane.

    Attributes:
        lanes: in order; the first has the units that the engine was made with.
    """

    def __init__(
        self, program: Program, blocks: Sequence[Sequence[Unit]], lanes: int, *, ahead: int = 0
    ) -> None:
        """Build `lanes` lanes.

        Args:
            program: which `learning.checks.check_lanes` has passed.
            blocks: the units of each block.
            lanes: how many at first.
            ahead: how many forwards of a lane's shards run ahead of the backwards, as under
                `gpipe` (all) and `1f1b`.
        """
        self.program, self._ahead = program, ahead
        copies = [[copied(units) for units in blocks] for _ in range(lanes - 1)]
        self.lanes = [SequentialEngine(program, units) for units in (blocks, *copies)]

    def resize(self, lanes: int, step: int) -> None:
        """Go on with another number of lanes at `step`: a new one takes the state of the first."""
        assert step % self.program.settings.agree_every == 0, f"lanes differ before step {step}"
        del self.lanes[lanes:]
        first = self.lanes[0]
        state = first.state_dict()
        while len(self.lanes) < lanes:
            units = [copied(block.units) for block in first.blocks]
            lane = SequentialEngine(self.program, units)
            lane.load_state_dict(state, step)
            self.lanes.append(lane)

    def train_step(
        self, step: int, shard_of: ShardOf, of_lanes: Sequence[Sequence[int]] | None = None
    ) -> Metrics:
        """One update of every block of every lane from one global batch.

        Args:
            step: number of the step.
            shard_of: makes the shards.
            of_lanes: the shards of each lane, in order; even runs unless told.

        Returns:
            What every lane says; where each learns from its own shards, what the first one says.
        """
        for lane, own in zip(
            self.lanes,
            of_lanes or shares(self.program.settings.shards, len(self.lanes)),
            strict=True,
        ):
            lane.tell(step)
            self._run(lane, step, own, shard_of)
        if self.program.settings.alone:
            return self._update_apart(step)
        partials: dict[str, list[Message]] = {
            name: [lane.learners[name].partial() for lane in self.lanes]
            for name in self.lanes[0].learners
        }
        first, *others = (
            {name: learner.update(step, partials[name]) for name, learner in lane.learners.items()}
            for lane in self.lanes
        )
        assert all(metrics == first for metrics in others)
        return first

    def _update_apart(self, step: int) -> Metrics:
        """Update each lane with its own shards, and let all agree when it is time."""
        first, *_ = (
            {name: learner.update(step) for name, learner in lane.learners.items()}
            for lane in self.lanes
        )
        for name in self.lanes[0].learners:
            agree(step, [lane.learners[name].outer for lane in self.lanes])
        return first

    def _run(
        self, lane: SequentialEngine, step: int, own: Sequence[int], shard_of: ShardOf
    ) -> None:
        ahead = min(self._ahead, len(own))
        for turn in range(len(own) + ahead):
            if turn < len(own):
                lane.forward(step, own[turn], *shard_of(step, own[turn]))
            if turn >= ahead:
                lane.backward(step, own[turn - ahead])

    def evaluate(self, step: int, split: str, batches: Iterator[tuple[Tensor, Tensor]]) -> Metrics:
        """Loss and accuracy of every block's own objective, in one lane: all are the same.

        With outer steps they are so after those.
        """
        return self.lanes[0].evaluate(step, split, batches)

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """The state of every learner by name, which is that of each lane.

        With outer steps it is the first lane's: inner optimizers, and what is under way between
        steps, are each lane's own.
        """
        return self.lanes[0].state_dict()
