"""What a block is made of: its units, objective and optimizer, and the state of all that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from learning.credit import Credit
from learning.learners.base import LearnerSettings, partition_state
from learning.learners.outbox import Outbox
from learning.learners.publishing import Publication, Reading
from learning.messages import InFlight, Message
from learning.module_state import Modes, as_json, from_json
from learning.numerics import Numerics, seeded
from learning.objectives.base import Objective
from learning.policies.buffers import ShardBuffers
from learning.policies.choice import make_updater
from learning.policies.codecs import Codec
from learning.policies.compiled import make_runner
from learning.policies.outer import OuterStep
from learning.units import Chain, Unit


@dataclass
class Body:
    """Block `index` of `last`.

    Attributes:
        receptor: turns an arriving gradient message into the gradient at this block's output.
        publications: whose objectives read weights of this block.
        reading: whose weights this block's objective reads.
        image: whether the network's input goes along with the activations.
        codec: how activations and gradients are written in messages of training.
        all_train: whether the user chose no modes: all units train, whatever mode they are in.
        input_type: to which floating-point inputs are cast, or as which codes are read; None: the
            type that they have, or the auxiliary one.
        auxiliary_type: of the objective and receptor, at least.
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
    all_train: bool = False
    input_type: torch.dtype | None = None
    auxiliary_type: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        self.chain = Chain(self.units)
        self.numerics = Numerics(self.settings.precision, self.device, self.auxiliary_type)
        self.numerics.prepare(self.chain)
        found = (getattr(module, "constrain_", None) for module in self.chain.modules())
        self._constraints = [constrain for constrain in found if callable(constrain)]
        self._constrain()
        self.modes = Modes(self.chain)
        if self.all_train:
            self.modes.choose([])
        self.modes.train()
        named = [(self.chain.original_name(n), p) for n, p in self.chain.named_parameters()]
        self.block_parameters = [p for _, p in named if p.requires_grad]
        if self.objective is not None:
            self.numerics.prepare_own(self.objective)
            self.objective.train()
            named += [(f"auxiliary.{n}", p) for n, p in self.objective.named_parameters()]
        if self.receptor is not None:
            self.numerics.prepare_own(self.receptor)
        self.run_units = make_runner(self.chain, self.settings.precision, self.index)
        self.updater = make_updater(
            named,
            self.settings.optimizer,
            self.settings.schedule,
            self.settings.update,
            module=self.chain,
            index=self.index,
            steps=self.settings.steps,
            batch=self.settings.batch,
            shards=self.settings.shards,
            alone=self.settings.alone,
        )
        shards, alone = self.settings.shards, self.settings.alone
        self.buffers = ShardBuffers("buffers", self.chain, shards, alone=alone)
        self.auxiliary_buffers = ShardBuffers("auxiliary", self.objective, shards, alone=alone)
        outer = self.settings.outer
        self.outer = None
        if outer is not None:
            self.outer = OuterStep(outer, self.updater, self._not_learnt, self._constrain)
        self.delay = self.credit.delay(self.index, self.last)
        self.outbox = Outbox(
            self.index, self.last, self.credit, self.codec, self.image, self.publications
        )

    @property
    def in_flight(self) -> InFlight:
        """What this block sent and will be taken in a later step."""
        return self.outbox.in_flight

    @property
    def auxiliary_parameters(self) -> list[nn.Parameter]:
        """The objective's parameters that learn."""
        return self.updater.parameters[len(self.block_parameters) :]

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that training goes on from, by name.

        `model.*` (names of the original module) with `hidden.*`, `extra.*` and `flags.*` (see
        `learning.module_state`), `auxiliary.*`, `optimizer.*`, where lanes learn apart `outer.*`,
        and what is under way between steps: `sent.*` and, in subclasses, more.
        """
        state = self.chain.whole_state() | self._flags()
        if self.objective is not None:
            state |= {f"auxiliary.{n}": t for n, t in self.objective.state_dict().items()}
        state |= {f"optimizer.{n}": t for n, t in self.updater.state_dict().items()}
        if self.outer is not None:
            state |= {f"outer.{n}": t for n, t in self.outer.state_dict().items()}
        return state | {f"sent.{n}": t for n, t in self.in_flight.state_dict().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load what `state_dict` returned (tensors are copied); an unfinished step is forgotten."""
        self.buffers.clear()
        self.auxiliary_buffers.clear()
        parts = partition_state(state)
        self.chain.load_whole_state(state)
        if "evaluation" in parts["flags"]:
            kept = set(from_json(parts["flags"]["evaluation"]))
            modules = [n for n, _ in self.chain.named_modules() if n.startswith("units.")]
            self.modes.choose([n for n in modules if self.chain.original_name(n) in kept])
            self.modes.train()
        if self.objective is not None:
            self.objective.load_state_dict(parts["auxiliary"])
        self.updater.load_state_dict(parts["optimizer"])
        if self.outer is not None:
            self.outer.load_state_dict(parts["outer"])
        self.in_flight.load_state_dict(parts["sent"], self.device)

    def _flags(self) -> dict[str, Tensor]:
        """Which modules stay in evaluation mode, and which parameters do not learn."""
        chain, name_of = self.chain, self.chain.original_name
        kept = [name_of(n) for n in self.modes.evaluation() if n.startswith("units.")]
        frozen = [name_of(n) for n, p in chain.named_parameters() if not p.requires_grad]
        return {"flags.evaluation": as_json(kept), "flags.frozen": as_json(frozen)}

    def _not_learnt(self) -> list[Tensor]:
        """What changes without an optimizer, in a fixed order.

        The block's buffers, and all of the objective that it takes from elsewhere or counts itself.
        """
        if self.objective is None:
            return self.buffers.tensors()
        frozen = [p for p in self.objective.parameters() if not p.requires_grad]
        return [*self.buffers.tensors(), *frozen, *self.objective.buffers()]

    def entering(self, x: Tensor) -> Tensor:
        """Bring an input of the block to its device, layout and type."""
        x = self.numerics.arrange(x)
        if self.index == 1 and self.input_type is not None and x.is_floating_point():
            x = x.to(self.input_type)
        return x

    def _constrain(self) -> None:
        """Let modules with a method `constrain_()` bring their weights back to where they belong.

        Once at the start, and after every update.
        """
        for constrain in self._constraints:
            constrain()

    def _tail_start(self, tail: int | None) -> int:
        """The number of the first parameter in the last `tail` units."""
        if tail is None:
            return 0
        before = self.chain.units[: max(0, len(self.chain.units) - tail)]
        return sum(p.requires_grad for p in before.parameters())

    def _local(self, message: Message) -> Message:
        return {n: t.to(self.device, non_blocking=True) for n, t in message.items()}

    def _seeded(self, *keys: int | str):
        return seeded(self.device, self.settings.seed, "block", self.index, *keys)
