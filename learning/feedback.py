"""Feedback modules: tables that tell each block about the labels, and their learner."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from learning.block import LearnerSettings, partition_state
from learning.errors import NonFiniteLossError
from learning.latents import Family, label_loss
from learning.messages import Message, outgoing
from learning.numerics import Numerics, seeded
from learning.settings import OptimizerSettings, Settings
from learning.update import Updater


class FeedbackSettings(Settings):
    """The feedback network of a rule.

    `chain`: module K-1 reads the one-hot label, module k the detached table of module k+1.
    `direct`: every module reads the label. `delay`: block k's step t uses the table of step t-d;
    `auto` is the number of blocks, at which nothing waits; 0 is lockstep.
    """

    kind: Literal["chain", "direct"] = "chain"
    delay: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    hidden: int | None = Field(
        default=None, ge=1, description="width of a hidden layer in each module"
    )
    scale: float = Field(default=1.0, gt=0, description="factor on a module's initial output")
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
    """Feedback module `index`: computes its table, learns it from the block's readouts by E6.

    The gradient dE6/db uses the current table and the readout of the same step, so a delay between
    table and block does not make the feedback network's own learning stale.
    """

    index: int
    module: FeedbackModule
    temperature: float
    delay: int
    settings: LearnerSettings
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.numerics = Numerics(self.settings.precision, self.device)
        self.numerics.prepare(self.module)
        self.updater = Updater(
            self.module.named_parameters(),
            self.settings.optimizer,
            self.settings.schedule,
            index=self.index,
            steps=self.settings.steps,
            batch=self.settings.batch,
        )
        self._raw: Tensor | None = None
        self._loss: Tensor | float = 0.0
        # Tables that block `index` will use after the current step, for checkpoints.
        self._sent: deque[tuple[int, Message]] = deque(maxlen=max(1, self.delay))

    def forward(self, step: int, upstream: Message | None) -> tuple[Message, Message]:
        """Compute the table of `step`.

        Returns:
            The message for block `index` (b, c) and the one for feedback module index-1 (raw).
        """
        source = None if upstream is None else self.numerics.arrange(upstream["raw"])
        with seeded(self.device, self.settings.seed, "feedback", self.index, step):
            raw = self.module(source)
        self._raw = raw
        message = {
            "b": outgoing(self.module.family.feedback(raw)),
            "c": outgoing(self.module.bias.clone()),
        }
        self._sent.append((step, message))
        return message, {"raw": outgoing(raw)}

    def receive(self, step: int, shard: int, readout: Message) -> None:
        """Add the gradient of E6 on one shard's readout (b, U, P), which is a constant here.

        Raises:
            NonFiniteLossError: before the gradient is added.
        """
        assert self._raw is not None
        a, y = self.numerics.arrange(readout["a"]), readout["y"].to(self.device)
        family = self.module.family
        score = family.score(a, family.feedback(self._raw))
        loss = label_loss(score, self.module.bias, y, self.temperature)
        if not torch.isfinite(loss):
            raise NonFiniteLossError(self.index, step, loss.item())
        gradients = torch.autograd.grad(
            loss,
            self.updater.parameters,
            retain_graph=shard + 1 < self.settings.shards,
        )
        self.updater.add(gradients)
        self.updater.end_shard()
        self._loss = self._loss + loss.detach()

    def update(self, step: int) -> dict[str, float]:
        """Update the module; returns the loss on this step's readouts."""
        loss = float(self._loss) / self.settings.batch
        self._raw, self._loss = None, 0.0
        self.updater.step(step)
        return {"loss": loss}

    def pending_tables(self, step: int) -> list[tuple[int, Message]]:
        """The tables computed before `step` that block `index` still uses from `step` on."""
        first = max(0, step - self.delay)
        return [(i, message) for i, message in self._sent if first <= i < step]

    def state_dict(self) -> dict[str, Tensor]:
        """`feedback.*`, `optimizer.*`, and the tables under way as `sent.<step>.<name>`."""
        state = {f"feedback.{n}": t for n, t in self.module.state_dict().items()}
        state |= {f"optimizer.{n}": t for n, t in self.updater.state_dict().items()}
        for step, message in self._sent:
            state |= {f"sent.{step}.{name}": t for name, t in message.items()}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned (tensors are copied)."""
        parts = partition_state(state)
        self.module.load_state_dict(parts["feedback"])
        self.updater.load_state_dict(parts["optimizer"])
        tables: dict[int, Message] = {}
        for full_name, tensor in parts["sent"].items():
            step, name = full_name.split(".")
            tables.setdefault(int(step), {})[name] = tensor.to(self.device, copy=True)
        self._sent.clear()
        self._sent.extend(sorted(tables.items()))


def table_step(step: int, delay: int) -> int:
    """The step whose table a block uses at `step`: that of t-d, the first one until then."""
    return max(0, step - delay)
