"""Feedback modules: tables that tell each block about the labels, and their learner."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from learning.bounds import Factor, KeptFrom0, Width
from learning.errors import NonFiniteLossError
from learning.learners.base import LearnerSettings, partition_state
from learning.memory import check_fits
from learning.messages import InFlight, Key, Message, Post, block_name, feedback_name, outgoing
from learning.numerics import Numerics, seeded
from learning.objectives.latents import Family
from learning.objectives.tables import TableLoss
from learning.policies.outer import OuterStep
from learning.policies.update import Updater
from learning.settings import OptimizerSettings, Settings

FEWER = "use fewer classes, a smaller rule.latent.grid, or a rule without tables"


class FeedbackSettings(Settings):
    """The feedback network of a rule.

    `chain`: module K-1 reads the one-hot label, module k the detached table of module k+1.
    `direct`: every module reads the label. `delay`: block k's step t uses the table of step t-d;
    `auto` is the number of blocks, at which nothing waits; 0 is lockstep.
    """

    kind: Literal["chain", "direct"] = "chain"
    delay: Literal["auto"] | KeptFrom0 = "auto"
    hidden: Width | None = Field(default=None, description="width of a hidden layer in each module")
    scale: Factor = Field(default=1.0, description="factor on a module's initial output")
    optimizer: OptimizerSettings | None = Field(default=None, description="null: as the blocks'")


class FeedbackModule(nn.Module):
    """g_k: the table of module k+1, or one-hot labels, to the raw table (C, U, P) of block k."""

    def __init__(
        self,
        settings: FeedbackSettings,
        *,
        classes: int,
        size: int | None,
        units: int,
        family: Family,
    ) -> None:
        super().__init__()
        self.family, self.shape = family, (classes, units, family.parameters)
        width = units * family.parameters
        if size is None:  # the labels, one-hot
            check_fits(4 * classes**2, f"a feedback network for {classes:,} classes", FEWER)
        check_fits(8 * classes * width, f"a table of {classes:,} rows of {width:,}", FEWER)
        source = classes if size is None else size
        norm = 1.0 if size is None else math.sqrt(size)  # of what feeds the next layer
        layers: list[nn.Module] = [] if size is None else [nn.LayerNorm(size)]
        if settings.hidden is not None:
            # A ReLU halves the second moment, so twice the variance goes in.
            layers += [_linear(source, settings.hidden, math.sqrt(2) / norm, bias=True), nn.ReLU()]
            source, norm = settings.hidden, math.sqrt(settings.hidden)
        # Rows of unit variance times the scale, whatever feeds them.
        out = _linear(source, width, settings.scale / norm, bias=size is not None)
        self.layers = nn.Sequential(*layers, out)
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, upstream: Tensor | None) -> Tensor:
        """Raw table: upstream (C, U', P') or None at the top, to (C, U, P)."""
        if upstream is None:
            x = torch.eye(self.shape[0], dtype=self.bias.dtype, device=self.bias.device)
        else:
            x = upstream.flatten(1)
        return self.layers(x).view(self.shape)


def _linear(source: int, width: int, deviation: float, *, bias: bool) -> nn.Linear:
    layer = nn.Linear(source, width, bias=bias)
    nn.init.normal_(layer.weight, 0.0, deviation)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


@dataclass
class FeedbackLearner:
    """Feedback module `index`: computes its table and learns it from the block's readouts.

    `loss` is the one the block learns from. Its gradient here uses the current table and the
    readout of the same step, so a delay between table and block does not make the feedback
    network's own learning stale.
    """

    index: int
    module: FeedbackModule
    loss: TableLoss
    delay: int
    chain: bool
    settings: LearnerSettings
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    auxiliary_type: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.numerics = Numerics(self.settings.precision, self.device, self.auxiliary_type)
        self.numerics.prepare_own(self.module)
        self.updater = Updater(
            self.module.named_parameters(),
            self.settings.optimizer,
            self.settings.schedule,
            index=self.index,
            steps=self.settings.steps,
            batch=self.settings.batch,
            shards=self.settings.shards,
            alone=self.settings.alone,
        )
        outer = self.settings.outer
        self.outer = None if outer is None else OuterStep(outer, self.updater)
        self._raw: Tensor | None = None
        self._losses: dict[int, Tensor] = {}  # by shard
        self.in_flight = InFlight()

    def forward(self, step: int, upstream: Message | None) -> list[Post]:
        """Compute the table of `step`.

        Returns:
            The message for block `index` (b, c) and, in a chain, the one for module index-1 (raw).
        """
        source = None if upstream is None else self.numerics.arrange(upstream["raw"])
        with seeded(self.device, self.settings.seed, "feedback", self.index, step):
            raw = self.module(source)
        self._raw = raw
        message = {
            "b": outgoing(self.module.family.feedback(raw)),
            "c": outgoing(self.module.bias.clone()),
        }
        until = step + self.delay if self.delay else None
        table = Post(block_name(self.index), Key("table", step), message, until)
        self.in_flight.keep([table], step)
        if not self.chain or self.index == 1:
            return [table]
        below = feedback_name(self.index - 1)
        return [table, Post(below, Key("raw", step), {"raw": outgoing(raw)})]

    def receive(self, step: int, shard: int, readout: Message) -> None:
        """Add the gradient of the loss on one shard's readout, which is a constant here.

        Raises:
            NonFiniteLossError: before the gradient is added.
        """
        assert self._raw is not None
        a, y = self.numerics.arrange(readout["a"]), readout["y"].to(self.device)
        table = {"b": self.module.family.feedback(self._raw), "c": self.module.bias}
        loss, _ = self.loss(a, table, y)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(self.index, step, loss.item())
        gradients = torch.autograd.grad(
            loss,
            self.updater.parameters,
            retain_graph=self.settings.shards > 1,
            allow_unused=True,  # not every loss reads the label bias
        )
        self.updater.add(gradients)
        self.updater.end_shard(shard)
        self._losses[shard] = loss.detach()

    def partial(self) -> Message:
        """What the readouts of this lane's shards come to; the tensors are only lent."""
        losses = {f"loss.{shard}": loss for shard, loss in self._losses.items()}
        return {**self.updater.partial(), **losses}

    def update(self, step: int, partials: Sequence[Message] | None = None) -> dict[str, float]:
        """Update the module; returns the loss on this step's readouts.

        Args:
            step: whose readouts were received.
            partials: of all lanes, this one among them, in any order; None where there is one lane,
                or lanes learn apart.
        """
        losses = self._losses
        if partials is not None:
            named = {n: t for partial in partials for n, t in partial.items()}
            shards = range(self.settings.shards)
            losses = {s: named[f"loss.{s}"].to(self.device) for s in shards}
        total = sum((losses[shard] for shard in sorted(losses)), 0.0)
        self._raw, self._losses = None, {}
        self.updater.step(step, partials)
        return {"loss": float(total) / self.settings.samples(len(losses))}

    def state_dict(self) -> dict[str, Tensor]:
        """`feedback.*`, `optimizer.*`, perhaps `outer.*`; the tables under way as `sent.*`."""
        state = {f"feedback.{n}": t for n, t in self.module.state_dict().items()}
        state |= {f"optimizer.{n}": t for n, t in self.updater.state_dict().items()}
        if self.outer is not None:
            state |= {f"outer.{n}": t for n, t in self.outer.state_dict().items()}
        return state | {f"sent.{n}": t for n, t in self.in_flight.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned (tensors are copied); an unfinished step is forgotten."""
        self._raw, self._losses = None, {}
        parts = partition_state(state)
        self.module.load_state_dict(parts["feedback"])
        self.updater.load_state_dict(parts["optimizer"])
        if self.outer is not None:
            self.outer.load_state_dict(parts["outer"])
        self.in_flight.load_state_dict(parts["sent"], self.device)


def table_step(step: int, delay: int) -> int:
    """The step whose table a block uses at `step`: that of t-d, the first one until then."""
    return max(0, step - delay)
