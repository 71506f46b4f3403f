"""The learner of one block: what it does with the messages that reach it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from learning.errors import NonFiniteLossError, UserError
from learning.learners.base import ShardTallies
from learning.learners.inference import InferringBody
from learning.learners.pending import Pending
from learning.messages import Key, Message, Post
from learning.objectives.base import Assessment


@dataclass
class BlockLearner(InferringBody):
    """Forward, assess, receive gradients, update; knows no scheduler.

    A shard's graph lives from `forward` until the last gradient that reaches the block went through
    it; all of them use the weights of the forward pass, because `update` comes after the last.
    Gradients in messages are of the per-sample sum of a loss; `update` divides by the batch.
    Where lanes share a step's shards, each has a learner of the block, which does its own shards
    only: `update` then takes the `partial` of every lane, and ends in the same state in all. Where
    lanes learn apart, `update` is of its own shards, and `outer` brings the lanes together.
    Subclasses change what a shard keeps, for delayed, replayed and second-order learning.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self._pending: dict[tuple[int, int], Pending] = {}
        self._training = ShardTallies()

    @property
    def needs_feedback(self) -> bool:
        """Whether this block's objective reads a feedback message."""
        return self.objective is not None and self.objective.needs_feedback

    def forward_needs_feedback(self, step: int) -> bool:
        """Whether the forward pass of `step` reads the feedback message too (bootstrapping)."""
        return self.objective is not None and self.objective.mixes(step)

    def publish(self, step: int) -> list[Post]:
        """The weights of `step`, before its update, for those who read them."""
        return self.outbox.weights(self.units, step)

    def read(self, message: Message) -> None:
        """Take weights that another block published into the objective."""
        assert self.objective is not None
        self.objective.take(self._local(message))

    def forward(
        self, step: int, shard: int, message: Message, feedback: Message | None = None
    ) -> list[Post]:
        """Run one shard forward; `feedback` is read only at steps where `forward_needs_feedback`.

        Returns:
            The message for block index+1; nothing from block K.
        """
        message = self._intake(step, shard, self._local(message))
        x = message["x"]
        if self.index > 1:
            x = self.codec.decode(message, "x", self.input_type or self.numerics.dtype)
        x = self.entering(x).detach()
        hop = self.credit.at(step)
        passed_back = () if self.credit.broadcast else hop.passed_back(self.index, self.last)
        if x.is_floating_point() or x.is_complex():  # nothing learns through integers
            x.requires_grad_(bool(passed_back) or self._differentiates_input(message))
        version = x._version
        with self._seeded("forward", step, shard), self.numerics.autocast():
            in_place = UserError(
                f"block {self.index} changes its input in place, but that memory is shared "
                f"with another block: pass inplace=False in unit {self.units[0].name!r}"
            )
            try:
                with self.updater.recording() as moments, self._counted(shard):
                    h, parameters = self._run(step, x)
            except RuntimeError as error:
                if x.requires_grad and "leaf Variable that requires grad" in str(error):
                    raise in_place from error  # autograd refused before the memory changed
                raise
            if x._version != version:
                raise in_place
            pending = Pending(
                x,
                h,
                message,
                parameters,
                list(hop.reaching(self.index, self.last)),
                hop.sources(self.index, self.last),
                passed_back,
                hop.tail,
                moments,
            )
            self._pending[step, shard] = pending
            on = h.detach()
            if self.index < self.last and self.objective is not None and self.objective.mixes(step):
                assert feedback is not None
                on = self.objective.send_on(on, message["y"], self._local(feedback), step)
        along = self._send_along(step, shard, pending)
        return self.outbox.activation(Key("x", step, shard), on, message, along)

    def assess(self, step: int, shard: int, feedback: Message | None = None) -> list[Post]:
        """Form the block's own loss on a shard and let its gradient in.

        Returns:
            The gradient messages for earlier blocks and the readout for the feedback module.

        Raises:
            NonFiniteLossError: before a gradient of that loss reaches any block.
        """
        pending = self._pending[step, shard]
        h = pending.h.detach().requires_grad_()
        assessment = self._assessment(step, shard, h, pending, feedback)
        auxiliary, first = self.auxiliary_parameters, len(self.block_parameters)
        (gradient,) = self.updater.backward(
            assessment.loss, None, auxiliary, [h], step=step, start=first
        )
        assert gradient is not None
        return [
            *self.outbox.errors(step, shard, gradient),
            *self._through(step, shard, self.index, gradient),
            *self.outbox.readout(step, shard, assessment.readout),
        ]

    def receive(self, step: int, shard: int, origin: int, message: Message) -> list[Post]:
        """Take the gradient of block `origin`'s loss, on the shard of `step`, through the block.

        Returns:
            The gradient message for block index-1 where that expects one.
        """
        dtype = self._pending[step, shard].h.dtype
        gradient = self.codec.decode(self._local(message), "gradient", dtype)
        if self.receptor is not None:
            gradient = self.receptor(self.numerics.for_own(gradient))
        return self._through(step, shard, origin, gradient)

    def partial(self) -> Message:
        """What this lane's shards of the step come to, when the last of them is done.

        Sums of gradients and buffers over parts of the tree of shards, and each shard's tally. The
        tensors are only lent.
        """
        return {
            **self.updater.partial(),
            **self.buffers.partial(),
            **self.auxiliary_buffers.partial(),
            **self._training.partial(),
        }

    def update(self, step: int, partials: Sequence[Message] | None = None) -> dict[str, float]:
        """Update the block and its auxiliary network; returns this step's loss and accuracy.

        Args:
            step: whose shards are done.
            partials: of all lanes, this one among them, in any order; None where there is one lane,
                or lanes learn apart.
        """
        tallies = self._training if partials is None else ShardTallies.merged(partials)
        metrics = tallies.means()
        self._training = ShardTallies()
        self.in_flight.keep((), step)  # lets go of what was taken by now
        self.buffers.update(partials)
        self.auxiliary_buffers.update(partials)
        if self.updater.step(step, partials):
            self._constrain()
        return metrics

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        self._pending.clear()
        self._training = ShardTallies()

    def _intake(self, step: int, shard: int, message: Message) -> Message:
        """What the block learns from at `step`; a subclass may take another message's place."""
        return message

    def _counted(self, shard: int) -> contextlib.AbstractContextManager[None]:
        """A context for the pass in which a shard enters the block's buffers."""
        return self.buffers.shard(shard)

    def _differentiates_input(self, message: Message) -> bool:
        """Whether the block's own loss is differentiated with respect to its input."""
        return False

    def _run(self, step: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The block's output, and its parameters in the graph of the output."""
        return self.run_units(x), list(self.block_parameters)

    def _send_along(self, step: int, shard: int, pending: Pending) -> Message:
        """What goes to the next block besides activation and labels."""
        return {}

    def _assessment(
        self, step: int, shard: int, h: Tensor, pending: Pending, feedback: Message | None
    ) -> Assessment:
        assert self.objective is not None
        with (
            self._seeded("assess", step, shard),
            self.numerics.autocast(),
            self.auxiliary_buffers.shard(shard),
        ):
            own = self.numerics.for_own(h)
            assessment = self.objective(own, self._told(pending.message, feedback))
        if not torch.isfinite(assessment.loss):
            raise NonFiniteLossError(self.index, step, assessment.loss.item())
        tally = self._training.of(shard)
        tally.add(assessment.loss, assessment.scores, pending.message["y"])
        return assessment

    def _through(self, step: int, shard: int, origin: int, gradient: Tensor) -> list[Post]:
        """Take a gradient at the output through the shard's graph and let go of what is done."""
        pending = self._pending[step, shard]
        pending.expected.remove(origin)
        weight = pending.sources.get(origin)
        first = self._tail_start(pending.tail) if origin != self.index else 0
        parameters = pending.parameters[first:] if weight is not None else []
        passed_back = origin in pending.passed_back
        inputs = [pending.x] if passed_back and pending.x.requires_grad else []
        gradient = self.numerics.arrange(gradient.to(pending.h.dtype))
        scale = 0.0 if weight is None else weight
        back = self._backward(step, pending, gradient, parameters, inputs, first, scale)
        if not pending.expected:
            self._release(step, shard)
        if not passed_back:
            return []
        there = back[0] if inputs else None
        if there is None:
            there = torch.zeros_like(pending.x)
        return [self.outbox.gradient(self.index - 1, step, shard, origin, there)]

    def _backward(
        self,
        step: int,
        pending: Pending,
        gradient: Tensor,
        parameters: list[Tensor],
        inputs: list[Tensor],
        first: int,
        weight: float,
    ) -> Sequence[Tensor | None]:
        """One backward pass: learn from it, and return the gradients of the inputs."""
        return self.updater.backward(
            pending.h,
            gradient,
            parameters,
            inputs,
            step=step + self.delay,
            start=first,
            weight=weight,
            retain_graph=bool(pending.expected),
        )

    def _release(self, step: int, shard: int) -> None:
        """The last gradient of a shard has come."""
        self.updater.end_shard(shard, self._pending.pop((step, shard)).moments)
