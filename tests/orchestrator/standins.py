"""Stand-ins for data and learners that compute nothing and check what reaches them, and when."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from learning.build import Program
from learning.messages import Key, Message, Post, block_name, feedback_name


class FakeSource:
    """Stands in for `Batches`."""

    def shard(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        return Tensor(), Tensor()

    def evaluation_batch(self, split: str, index: int, batch: int) -> tuple[Tensor, Tensor]:
        return Tensor(), Tensor()


class FakeBlock:
    """Stands in for `BlockLearner`: demands what its credit says, in the order of shards."""

    outer = None  # lanes do not learn apart

    def __init__(self, program: Program, k: int, mixing: int) -> None:
        self.program, self.credit = program, program.rule.credit
        self.device = torch.device("cpu")
        self.index, self.last = k, program.blocks
        self.shards, self.mixing = program.settings.shards, mixing
        self.delay = self.credit.delay(k, self.last)
        self.needs_feedback = bool(program.feedback_modules) and k < self.last
        self.pending: dict[tuple[int, int], set[int]] = {}
        self.finished: set[int] = set()
        self.updates: list[int] = []
        self.read_at: list[int] = []
        self.most_pending = 0

    def forward_needs_feedback(self, step: int) -> bool:
        return self.needs_feedback and step < self.mixing

    def publish(self, step: int) -> list[Post]:
        assert step == len(self.updates)
        return [
            Post(block_name(r.reader), Key("weights", step, 0, self.index), {})
            for r in self.program.readings_of(self.index)
        ]

    def read(self, message: Message) -> None:
        self.read_at.append(len(self.updates))

    def forward(self, step: int, shard: int, message: Message, table: Any) -> list[Post]:
        assert step == len(self.updates)
        assert (table is not None) == self.forward_needs_feedback(step)
        self.pending[step, shard] = set(self.credit.at(step).reaching(self.index, self.last))
        self.most_pending = max(self.most_pending, len(self.pending))
        if self.index == self.last:
            return []
        return [Post(block_name(self.index + 1), Key("x", step, shard), {})]

    def assess(self, step: int, shard: int, table: Any) -> list[Post]:
        assert step == len(self.updates)
        assert (table is not None) == self.needs_feedback
        posts = self._through(step, shard, self.index)
        if self.credit.broadcast:
            key = Key("g", step, shard, self.index)
            posts += [
                Post(block_name(k), key, {"gradient": Tensor()}) for k in range(1, self.index)
            ]
        if self.needs_feedback:
            posts.append(Post(feedback_name(self.index), Key("readout", step, shard), {}))
        return posts

    def receive(self, step: int, shard: int, origin: int, message: Message) -> list[Post]:
        assert "gradient" in message and step == len(self.updates) - self.delay
        return self._through(step, shard, origin)

    def _through(self, step: int, shard: int, origin: int) -> list[Post]:
        assert set(range(shard)) <= self.finished, "shards finish in order"
        pending = self.pending.get((step, shard))
        if pending is not None:  # a blocked operation is tried again
            pending.discard(origin)
            if not pending:
                del self.pending[step, shard]
                self.finished.add(shard)
        passed_back = self.credit.at(step).passed_back(self.index, self.last)
        if self.credit.broadcast or origin not in passed_back:
            return []
        key = Key("g", step, shard, origin)
        return [Post(block_name(self.index - 1), key, {"gradient": Tensor()})]

    def update(self, step: int) -> dict[str, float]:
        assert step == len(self.updates)
        expected = set(range(self.shards)) if step >= self.delay else set()
        assert self.finished == expected
        assert len(self.pending) == min(step + 1, self.delay) * self.shards
        self.finished = set()
        self.updates.append(step)
        return {}

    def infer(self, split: str, message: Message, table: Any) -> Message:
        assert (table is not None) == self.needs_feedback
        return {}

    def end_evaluation(self, split: str) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class FakeFeedback:
    """Stands in for `FeedbackLearner`."""

    outer = None

    def __init__(self, program: Program, k: int) -> None:
        self.top = not program.feedback_chain or k == program.feedback_modules
        self.index, self.chain = k, program.feedback_chain
        self.updates: list[int] = []

    def forward(self, step: int, upstream: Message | None) -> list[Post]:
        assert step == len(self.updates) and (upstream is None) == self.top
        posts = [Post(block_name(self.index), Key("table", step), {})]
        if self.chain and self.index > 1:
            posts.append(Post(feedback_name(self.index - 1), Key("raw", step), {}))
        return posts

    def receive(self, step: int, shard: int, readout: Message) -> None:
        assert step == len(self.updates)

    def update(self, step: int) -> dict[str, float]:
        self.updates.append(step)
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}
