"""The learner of one block: its units, objective, credit and optimizer. It knows no scheduler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from learning.codecs import Codec
from learning.credit import Credit
from learning.errors import NonFiniteLossError, UserError
from learning.learner import LearnerSettings, Tally, partition_state
from learning.messages import InFlight, Key, Message, Post, block_name, feedback_name, outgoing
from learning.numerics import Numerics, seeded
from learning.objectives import Assessment, Objective, Told
from learning.policies import make_updater
from learning.publishing import Publication, Reading
from learning.units import Chain, Unit


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


@dataclass
class BlockLearner:
    """Block `index` of `last`: forward, assess, receive gradients, update.

    A shard's graph lives from `forward` until the last gradient that reaches the block went through
    it; all of them use the weights of the forward pass, because `update` comes after the last.
    Gradients in messages are of the per-sample sum of a loss; `update` divides by the batch.
    Subclasses change what a shard keeps, for delayed, replayed and second-order learning.

    Attributes:
        receptor: turns an arriving gradient message into the gradient at this block's output.
        publications: whose objectives read weights of this block.
        reading: whose weights this block's objective reads.
        image: whether the network's input goes along with the activations.
        codec: how activations and gradients are written in messages of training.
    """

    index: int
    last: int
    units: Sequence[Unit]
    objective: Objective | None
    credit: Credit
    settings: LearnerSettings
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    receptor: nn.Module | None = None
    publications: Sequence[Publication] = ()
    reading: Reading | None = None
    image: bool = False
    codec: Codec = field(default_factory=Codec)

    def __post_init__(self) -> None:
        self.chain = Chain(self.units)
        self.numerics = Numerics(self.settings.precision, self.device)
        self.numerics.prepare(self.chain)
        self._constrain()
        self.chain.train()  # whatever mode the user's module came in
        named = [(self.chain.original_name(n), p) for n, p in self.chain.named_parameters()]
        self.block_parameters = [p for _, p in named if p.requires_grad]
        if self.objective is not None:
            self.numerics.prepare(self.objective)
            self.objective.train()
            named += [(f"auxiliary.{n}", p) for n, p in self.objective.named_parameters()]
        if self.receptor is not None:
            self.numerics.prepare(self.receptor)
        self.updater = make_updater(
            named,
            self.settings.optimizer,
            self.settings.schedule,
            self.settings.update,
            module=self.chain,
            index=self.index,
            steps=self.settings.steps,
            batch=self.settings.batch,
        )
        self.delay = self.credit.delay(self.index, self.last)
        self.in_flight = InFlight()
        self._pending: dict[tuple[int, int], Pending] = {}
        self._training = Tally()
        self._evaluation: dict[str, Tally] = defaultdict(Tally)

    @property
    def needs_feedback(self) -> bool:
        """Whether this block's objective reads a feedback message."""
        return self.objective is not None and self.objective.needs_feedback

    def forward_needs_feedback(self, step: int) -> bool:
        """Whether the forward pass of `step` reads the feedback message too (bootstrapping)."""
        return self.objective is not None and self.objective.mixes(step)

    def publish(self, step: int) -> list[Post]:
        """The weights of `step`, before its update, for those who read them."""
        posts = [p.post(self.units, self.index, step) for p in self.publications if p.due(step)]
        self.in_flight.keep(posts, step)
        return posts

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
            x = self.codec.decode(message, "x", self.numerics.dtype)
        x = self.numerics.arrange(x).detach()
        hop = self.credit.at(step)
        passed_back = () if self.credit.broadcast else hop.passed_back(self.index, self.last)
        x.requires_grad_(bool(passed_back) or self._differentiates_input(message))
        version = x._version
        with self._seeded("forward", step, shard), self.numerics.autocast():
            in_place = UserError(
                f"block {self.index} changes its input in place, but that memory is shared "
                f"with another block: pass inplace=False in unit {self.units[0].name!r}"
            )
            try:
                with self.updater.recording() as moments:
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
        if self.index == self.last:
            return []
        coded = self.codec.encode("x", outgoing(on), self._tokens(message))
        return [self._post_on(Key("x", step, shard), {**coded, **along}, message)]

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
        posts = []
        if self.credit.broadcast:
            posts = [
                self._gradient_post(k, step, shard, self.index, gradient)
                for k in range(1, self.index)
            ]
        posts += self._through(step, shard, self.index, gradient)
        if assessment.readout is not None:
            key = Key("readout", step, shard)
            posts.append(Post(feedback_name(self.index), key, assessment.readout))
        return posts

    def receive(self, step: int, shard: int, origin: int, message: Message) -> list[Post]:
        """Take the gradient of block `origin`'s loss, on the shard of `step`, through the block.

        Returns:
            The gradient message for block index-1 where that expects one.
        """
        dtype = self._pending[step, shard].h.dtype
        gradient = self.codec.decode(self._local(message), "gradient", dtype)
        if self.receptor is not None:
            gradient = self.receptor(gradient)
        return self._through(step, shard, origin, gradient)

    def update(self, step: int) -> dict[str, float]:
        """Update the block and its auxiliary network; returns this step's loss and accuracy."""
        metrics = self._training.means() if self._training.samples else {}
        self._training = Tally()
        self.in_flight.keep((), step)  # lets go of what was taken by now
        if self.updater.step(step):
            self._constrain()
        return metrics

    @torch.no_grad()
    def infer(self, split: str, message: Message, feedback: Message | None = None) -> Message:
        """Run one batch forward in evaluation mode; tallies the block's own loss and accuracy."""
        self.chain.eval()
        if self.objective is not None:
            self.objective.eval()
        message = self._local(message)
        x, y = self.numerics.arrange(message["x"]), message["y"]
        with self._seeded("infer"), self.numerics.autocast():
            h = self.chain(x)
            if self.objective is not None:
                assessment = self.objective(h, self._told(message, feedback))
                self._evaluation[split].add(assessment.loss, assessment.scores, y)
                self.objective.train()
        self.chain.train()
        return self._post_on(Key("e", 0), {"x": outgoing(h)}, message).message

    def end_evaluation(self, split: str) -> dict[str, float]:
        """Loss and accuracy over all batches inferred since the last call, {} without a loss."""
        tally = self._evaluation.pop(split, None)
        return tally.means() if tally else {}

    @property
    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """The objective's parameters that learn."""
        return self.updater.parameters[len(self.block_parameters) :]

    def _constrain(self) -> None:
        """Let modules with a method `constrain_()` bring their weights back to where they belong.

        Once at the start, and after every update.
        """
        for module in self.chain.modules():
            constrain = getattr(module, "constrain_", None)
            if callable(constrain):
                constrain()

    def _intake(self, step: int, shard: int, message: Message) -> Message:
        """What the block learns from at `step`; a subclass may take another message's place."""
        return message

    def _differentiates_input(self, message: Message) -> bool:
        """Whether the block's own loss is differentiated with respect to its input."""
        return False

    def _run(self, step: int, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The block's output, and its parameters in the graph of the output."""
        return self.chain(x), list(self.block_parameters)

    def _send_along(self, step: int, shard: int, pending: Pending) -> Message:
        """What goes to the next block besides activation and labels."""
        return {}

    def _assessment(
        self, step: int, shard: int, h: Tensor, pending: Pending, feedback: Message | None
    ) -> Assessment:
        assert self.objective is not None
        with self._seeded("assess", step, shard), self.numerics.autocast():
            assessment = self.objective(h, self._told(pending.message, feedback))
        if not torch.isfinite(assessment.loss):
            raise NonFiniteLossError(self.index, step, assessment.loss.item())
        self._training.add(assessment.loss, assessment.scores, pending.message["y"])
        return assessment

    def _through(self, step: int, shard: int, origin: int, gradient: Tensor) -> list[Post]:
        """Take a gradient at the output through the shard's graph and let go of what is done."""
        pending = self._pending[step, shard]
        pending.expected.remove(origin)
        weight = pending.sources.get(origin)
        first = self._tail_start(pending.tail) if origin != self.index else 0
        parameters = pending.parameters[first:] if weight is not None else []
        inputs = [pending.x] if origin in pending.passed_back else []
        gradient = self.numerics.arrange(gradient.to(pending.h.dtype))
        scale = 0.0 if weight is None else weight
        back = self._backward(step, pending, gradient, parameters, inputs, first, scale)
        if not pending.expected:
            self._release(step, shard)
        if not inputs:
            return []
        there = torch.zeros_like(pending.x) if back[0] is None else back[0]
        return [self._gradient_post(self.index - 1, step, shard, origin, there)]

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
        self.updater.end_shard(self._pending.pop((step, shard)).moments)

    def _tail_start(self, tail: int | None) -> int:
        """The number of the first parameter in the last `tail` units."""
        if tail is None:
            return 0
        before = self.chain.units[: max(0, len(self.chain.units) - tail)]
        return sum(p.requires_grad for p in before.parameters())

    def _gradient_post(self, to: int, step: int, shard: int, origin: int, gradient: Tensor) -> Post:
        key = Key("g", step, shard, origin)
        taken = step + self.credit.delay(to, self.last)
        until = taken if taken > step + self.delay else None
        post = Post(block_name(to), key, self.codec.encode("gradient", gradient), until)
        self.in_flight.keep([post], step + self.delay)
        return post

    def _post_on(self, key: Key, activation: Message, message: Message) -> Post:
        on = {**activation, "y": outgoing(message["y"])}
        if self.image and self.index + 1 < self.last:  # block K has the task loss
            on["image"] = outgoing(message["image"] if self.index > 1 else message["x"])
        return Post(block_name(self.index + 1), key, on)

    def _tokens(self, message: Message) -> Tensor | None:
        """The tokens that the activations belong to, where the network reads tokens."""
        tokens = message["x"] if self.index == 1 else message.get("x.tokens")
        return None if tokens is None or tokens.is_floating_point() else tokens

    def _told(self, message: Message, feedback: Message | None) -> Told:
        image = (message["x"] if self.index == 1 else message.get("image")) if self.image else None
        return Told(message["y"], feedback and self._local(feedback), image)

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training goes on from, by name.

        `model.*` (names of the original module), `auxiliary.*`, `optimizer.*`, and what is under
        way between steps: `sent.*` and, in subclasses, more.
        """
        state = {f"model.{n}": t for n, t in self.chain.original_state().items()}
        if self.objective is not None:
            state |= {f"auxiliary.{n}": t for n, t in self.objective.state_dict().items()}
        state |= {f"optimizer.{n}": t for n, t in self.updater.state_dict().items()}
        return state | {f"sent.{n}": t for n, t in self.in_flight.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned (tensors are copied)."""
        parts = partition_state(state)
        self.chain.load_original_state(parts["model"])
        if self.objective is not None:
            self.objective.load_state_dict(parts["auxiliary"])
        self.updater.load_state_dict(parts["optimizer"])
        self.in_flight.load_state_dict(parts["sent"], self.device)

    def _local(self, message: Message) -> Message:
        return {n: t.to(self.device, non_blocking=True) for n, t in message.items()}

    def _seeded(self, *keys: int | str):
        return seeded(self.device, self.settings.seed, "block", self.index, *keys)
