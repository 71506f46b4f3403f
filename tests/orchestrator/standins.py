"""Stand-ins for data and learners that compute nothing and check what reaches them, and when."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from learning.build import Program
from learning.messages import Message


class FakeSource:
    """Stands in for `Batches`."""

    def shard(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        return Tensor(), Tensor()

    def evaluation_batch(self, split: str, index: int, batch: int) -> tuple[Tensor, Tensor]:
        return Tensor(), Tensor()


class FakeBlock:
    """Stands in for `BlockLearner`: demands what its credit says, in the order of shards."""

    def __init__(self, program: Program, k: int, mixing: int) -> None:
        credit, self.index, self.last = program.rule.credit, k, program.blocks
        self.shards, self.mixing = program.settings.shards, mixing
        self.reaching = credit.reaching(k, self.last)
        self.passed_back = credit.passed_back(k, self.last)
        self.needs_feedback = bool(program.feedback_modules) and k < self.last
        self.pending: dict[int, set[int]] = {}
        self.finished: set[int] = set()
        self.updates: list[int] = []
        self.most_pending = 0

    def forward_needs_feedback(self, step: int) -> bool:
        return self.needs_feedback and step < self.mixing

    def forward(self, step: int, shard: int, message: Message, table: Any) -> Message | None:
        assert step == len(self.updates)
        assert (table is not None) == self.forward_needs_feedback(step)
        self.pending[shard] = set(self.reaching)
        self.most_pending = max(self.most_pending, len(self.pending))
        return {} if self.index < self.last else None

    def assess(self, step: int, shard: int, table: Any) -> tuple[Message | None, Message | None]:
        assert step == len(self.updates)
        assert (table is not None) == self.needs_feedback
        return self._through(shard, self.index), {} if self.needs_feedback else None

    def receive(self, shard: int, origin: int, gradient: Any) -> Message | None:
        return self._through(shard, origin)

    def _through(self, shard: int, origin: int) -> Message | None:
        assert set(range(shard)) <= self.finished, "shards finish in order"
        self.pending.get(shard, set()).discard(origin)
        if shard in self.pending and not self.pending[shard]:
            del self.pending[shard]
            self.finished.add(shard)
        return {"gradient": Tensor()} if origin in self.passed_back else None

    def update(self, step: int) -> dict[str, float]:
        assert step == len(self.updates)
        assert self.finished == set(range(self.shards)) and not self.pending
        self.finished = set()
        self.updates.append(step)
        return {}

    def infer(self, split: str, message: Message, table: Any) -> Message:
        assert not self.pending and (table is not None) == self.needs_feedback
        return {}

    def end_evaluation(self, split: str) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class FakeFeedback:
    """Stands in for `FeedbackLearner`."""

    def __init__(self, program: Program, k: int) -> None:
        self.top = not program.feedback_chain or k == program.feedback_modules
        self.updates: list[int] = []

    def forward(self, step: int, upstream: Message | None) -> tuple[Message, Message]:
        assert step == len(self.updates) and (upstream is None) == self.top
        return {}, {}

    def receive(self, step: int, shard: int, readout: Message) -> None:
        assert step == len(self.updates)

    def update(self, step: int) -> dict[str, float]:
        self.updates.append(step)
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        return {}
