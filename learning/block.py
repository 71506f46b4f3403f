"""The learner of one block: its units, objective, credit and optimizer. It knows no scheduler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from learning.credit import Hop
from learning.errors import NonFiniteLossError, UserError
from learning.messages import Message, outgoing
from learning.numerics import Numerics, seeded
from learning.objectives import Objective
from learning.settings import OptimizerSettings, PrecisionSettings, ScheduleSettings
from learning.units import Chain, Unit
from learning.update import Updater


@dataclass(frozen=True)
class LearnerSettings:
    """What every learner of a run shares.

    Attributes:
        batch: samples of a step, over all shards.
        shards: microbatches of a step.
        steps: steps of the run, for the schedule.
    """

    optimizer: OptimizerSettings
    schedule: ScheduleSettings
    precision: PrecisionSettings
    seed: int
    batch: int
    shards: int
    steps: int


@dataclass
class _Pending:
    """One shard between its forward pass and the last gradient that reaches it."""

    x: Tensor
    h: Tensor
    y: Tensor
    expected: list[int]


@dataclass
class _Tally:
    """Sums over the shards of one step or evaluation."""

    loss: Tensor | float = 0.0
    correct: Tensor | float = 0.0
    samples: int = 0

    def add(self, loss: Tensor, scores: Tensor, y: Tensor) -> None:
        self.loss = self.loss + loss.detach()
        self.correct = self.correct + (scores.argmax(-1) == y).sum()
        self.samples += len(y)

    def means(self) -> dict[str, float]:
        return {
            "loss": float(self.loss) / self.samples,
            "accuracy": float(self.correct) / self.samples,
        }


@dataclass
class BlockLearner:
    """Block `index` of `last`: forward, assess, receive gradients, update.

    A shard's graph lives from `forward` until the last gradient of `credit.reaching` went through
    it; all of them use the weights of the forward pass, because `update` comes after the last.
    Gradients in messages are of the per-sample sum of a loss; `update` divides by the batch.
    """

    index: int
    last: int
    units: Sequence[Unit]
    objective: Objective | None
    credit: Hop
    settings: LearnerSettings
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.chain = Chain(self.units)
        self.numerics = Numerics(self.settings.precision, self.device)
        self.numerics.prepare(self.chain)
        self.chain.train()  # whatever mode the user's module came in
        named = [(self.chain.original_name(n), p) for n, p in self.chain.named_parameters()]
        self._block_parameters = [p for _, p in named if p.requires_grad]
        if self.objective is not None:
            self.numerics.prepare(self.objective)
            self.objective.train()
            named += [(f"auxiliary.{n}", p) for n, p in self.objective.named_parameters()]
        self.updater = Updater(
            named,
            self.settings.optimizer,
            self.settings.schedule,
            index=self.index,
            steps=self.settings.steps,
            batch=self.settings.batch,
        )
        self.sources = self.credit.sources(self.index, self.last)
        self.reaching = self.credit.reaching(self.index, self.last)
        self.passed_back = self.credit.passed_back(self.index, self.last)
        self._pending: dict[int, _Pending] = {}
        self._training = _Tally()
        self._evaluation: dict[str, _Tally] = defaultdict(_Tally)

    @property
    def needs_feedback(self) -> bool:
        """Whether this block's objective reads a feedback message."""
        return self.objective is not None and self.objective.needs_feedback

    def forward_needs_feedback(self, step: int) -> bool:
        """Whether the forward pass of `step` reads the feedback message too (bootstrapping)."""
        return self.objective is not None and self.objective.mixes(step)

    def forward(
        self, step: int, shard: int, message: Message, feedback: Message | None = None
    ) -> Message | None:
        """Run one shard forward; `feedback` is read only at steps where `forward_needs_feedback`.

        Returns:
            The message for block index+1, None for block K.
        """
        x = self.numerics.arrange(message["x"]).detach()
        y = message["y"].to(self.device, non_blocking=True)
        x.requires_grad_(bool(self.passed_back))
        version = x._version
        with self._seeded("forward", step, shard), self.numerics.autocast():
            in_place = UserError(
                f"block {self.index} changes its input in place, but that memory is shared "
                f"with another block: pass inplace=False in unit {self.units[0].name!r}"
            )
            try:
                h = self.chain(x)
            except RuntimeError as error:
                if x.requires_grad and "leaf Variable that requires grad" in str(error):
                    raise in_place from error  # autograd refused before the memory changed
                raise
            if x._version != version:
                raise in_place
            self._pending[shard] = _Pending(x, h, y, list(self.reaching))
            if self.index == self.last:
                return None
            on = h.detach()
            if self.objective is not None and self.objective.mixes(step):
                assert feedback is not None
                on = self.objective.send_on(on, y, self._local(feedback), step)
        return {"x": outgoing(on), "y": outgoing(y)}

    def assess(
        self, step: int, shard: int, feedback: Message | None = None
    ) -> tuple[Message | None, Message | None]:
        """Form the block's own loss on a shard and let its gradient in.

        Returns:
            The gradient message for block index-1 and the readout for the feedback module, each
            None when there is none.

        Raises:
            NonFiniteLossError: before a gradient of that loss reaches any block.
        """
        assert self.objective is not None
        pending = self._pending[shard]
        h = pending.h.detach().requires_grad_()
        with self._seeded("assess", step, shard), self.numerics.autocast():
            assessment = self.objective(h, pending.y, feedback and self._local(feedback))
        if not torch.isfinite(assessment.loss):
            raise NonFiniteLossError(self.index, step, assessment.loss.item())
        auxiliary = self.updater.parameters[len(self._block_parameters) :]
        *auxiliary_gradients, gradient = torch.autograd.grad(
            assessment.loss, [*auxiliary, h], allow_unused=True
        )
        self.updater.add(auxiliary_gradients, start=len(self._block_parameters))
        self._training.add(assessment.loss, assessment.scores, pending.y)
        return self.receive(shard, self.index, gradient), assessment.readout

    def receive(self, shard: int, origin: int, gradient: Tensor) -> Message | None:
        """Take the gradient of block `origin`'s loss at this block's output through the block.

        Returns:
            The gradient at the block's input, for block index-1, or None when it needs none.
        """
        pending = self._pending[shard]
        pending.expected.remove(origin)
        weight = self.sources.get(origin)
        parameters = self._block_parameters if weight is not None else []
        inputs = [pending.x] if origin in self.passed_back else []
        grads: Sequence[Tensor | None] = ()
        if (parameters or inputs) and pending.h.requires_grad:
            grads = torch.autograd.grad(
                pending.h,
                [*parameters, *inputs],
                self.numerics.arrange(gradient),
                retain_graph=bool(pending.expected),
                allow_unused=True,
            )
        if weight is not None and parameters and grads:
            self.updater.add(grads[: len(parameters)], weight=weight)
        if not pending.expected:
            del self._pending[shard]
            self.updater.end_shard()
        if not inputs:
            return None
        back = grads[-1] if grads else None
        return {"gradient": outgoing(torch.zeros_like(pending.x) if back is None else back)}

    def update(self, step: int) -> dict[str, float]:
        """Update the block and its auxiliary network; returns this step's loss and accuracy."""
        metrics = self._training.means() if self._training.samples else {}
        self._training = _Tally()
        self.updater.step(step)
        return metrics

    @torch.no_grad()
    def infer(self, split: str, message: Message, feedback: Message | None = None) -> Message:
        """Run one batch forward in evaluation mode; tallies the block's own loss and accuracy."""
        self.chain.eval()
        if self.objective is not None:
            self.objective.eval()
        x = self.numerics.arrange(message["x"])
        y = message["y"].to(self.device, non_blocking=True)
        with self._seeded("infer"), self.numerics.autocast():
            h = self.chain(x)
            if self.objective is not None:
                assessment = self.objective(h, y, feedback and self._local(feedback))
                self._evaluation[split].add(assessment.loss, assessment.scores, y)
                self.objective.train()
        self.chain.train()
        return {"x": outgoing(h), "y": outgoing(y)}

    def end_evaluation(self, split: str) -> dict[str, float]:
        """Loss and accuracy over all batches inferred since the last call, {} without a loss."""
        tally = self._evaluation.pop(split, None)
        return tally.means() if tally else {}

    def state_dict(self) -> dict[str, Tensor]:
        """`model.*` (names of the original module), `auxiliary.*` and `optimizer.*` tensors."""
        state = {f"model.{n}": t for n, t in self.chain.original_state().items()}
        if self.objective is not None:
            state |= {f"auxiliary.{n}": t for n, t in self.objective.state_dict().items()}
        return state | {f"optimizer.{n}": t for n, t in self.updater.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned (tensors are copied)."""
        parts = partition_state(state)
        self.chain.load_original_state(parts["model"])
        if self.objective is not None:
            self.objective.load_state_dict(parts["auxiliary"])
        self.updater.load_state_dict(parts["optimizer"])

    def _local(self, feedback: Message) -> Message:
        return {n: t.to(self.device, non_blocking=True) for n, t in feedback.items()}

    def _seeded(self, *keys: int | str):
        return seeded(self.device, self.settings.seed, "block", self.index, *keys)


def partition_state(state: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a learner's state by the first part of its names."""
    parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in state.items():
        kind, rest = name.split(".", 1)
        parts[kind][rest] = tensor
    return parts
