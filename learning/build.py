"""Builds the learners of a run, the same bits in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from learning.credit import Delayed, Reconcile
from learning.learners.base import LearnerSettings
from learning.learners.block import BlockLearner
from learning.learners.delayed import DelayedBlock
from learning.learners.feedback import FeedbackLearner, FeedbackModule
from learning.learners.publishing import Publication, Reading
from learning.learners.reconciling import ReconcilingBlock
from learning.learners.replay import ReplayingBlock
from learning.messages import block_name, feedback_name
from learning.numerics import seeded
from learning.objectives.base import TaskLoss
from learning.objectives.readout import Readout
from learning.policies.choice import make_codec
from learning.policies.codecs import Codec
from learning.rules import Rule
from learning.rules.base import Site
from learning.surroundings import Surroundings
from learning.units import Unit

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Program:
    """A rule applied to a network that is cut into blocks; small enough to send to every actor.

    Attributes:
        output_shapes: of blocks 1..K, without batch.
        input_shape: of the network's input, without batch.
        target_shape: of a sample's labels: () or, for one a token, (T,).
        subspace: rank of the subspace that the network's residual stream stays in, if it does.
        input_type: in which the network takes numbers; None: as they come.
        output_types: of blocks 1..K; empty: the auxiliary type.
        auxiliary_type: of what a rule adds beside no block, or any where types are not known.
        all_train: whether all units train, whatever mode the user's module is in.
        surroundings: of the process in which the user called.
    """

    rule: Rule
    settings: LearnerSettings
    output_shapes: tuple[tuple[int, ...], ...]
    classes: int
    input_shape: tuple[int, ...] = ()
    target_shape: tuple[int, ...] = ()
    subspace: int | None = None
    input_type: torch.dtype | None = None
    output_types: tuple[torch.dtype, ...] = ()
    auxiliary_type: torch.dtype = torch.float32
    all_train: bool = False
    surroundings: Surroundings = field(default_factory=Surroundings.here)

    @property
    def blocks(self) -> int:
        """K."""
        return len(self.output_shapes)

    def entering_type(self, k: int) -> torch.dtype | None:
        """The type in which block k reads numbers; None: as they come."""
        if k == 1:
            return self.input_type
        return self.output_types[k - 2] if self.output_types else None

    def type_beside(self, k: int) -> torch.dtype:
        """The type of what a rule adds to block k: what it reads fits in."""
        if not self.output_types:
            return self.auxiliary_type
        return torch.float64 if self.output_types[k - 1] == torch.float64 else torch.float32

    @property
    def feedback_modules(self) -> int:
        """How many feedback modules there are: K-1 or none."""
        return self.blocks - 1 if self.rule.feedback_network else 0

    @property
    def feedback_delay(self) -> int:
        """d: block k's step t uses the table of step t-d."""
        network = self.rule.feedback_network
        if network is None:
            return 0
        return self.blocks if network[0].delay == "auto" else network[0].delay

    @property
    def feedback_chain(self) -> bool:
        """Whether feedback module k reads the table of module k+1."""
        network = self.rule.feedback_network
        return network is not None and network[0].kind == "chain"

    def assessed(self, k: int) -> bool:
        """Whether block k forms a loss of its own."""
        return self.rule.credit.assessed(k, self.blocks)

    def reading(self, k: int) -> Reading | None:
        """Whose weights block k's objective reads."""
        return next((r for r in self.rule.readings(self.blocks) if r.reader == k), None)

    def readings_of(self, k: int) -> list[Reading]:
        """Who reads weights of block k."""
        return [r for r in self.rule.readings(self.blocks) if r.publisher == k]

    def receivers(self, name: str) -> list[str]:
        """The learners to which one sends messages; activations go to the first."""
        if name == "source":
            return [block_name(1)]
        if name.startswith("feedback"):
            k = int(name.removeprefix("feedback"))
            below = [feedback_name(k - 1)] if k > 1 and self.feedback_chain else []
            return [block_name(k), *below]
        k = int(name.removeprefix("block"))
        to = [block_name(k + 1)] if k < self.blocks else []
        if self.rule.credit.broadcast:
            to += [block_name(j) for j in range(1, k)] if k == self.blocks else []
        elif any(hop.passed_back(k, self.blocks) for hop in self.rule.credit.hops()):
            to.append(block_name(k - 1))
        if k <= self.feedback_modules:
            to.append(feedback_name(k))
        readers = [block_name(r.reader) for r in self.readings_of(k)]
        return list(dict.fromkeys([*to, *readers]))


def build_block(
    program: Program,
    k: int,
    units: Sequence[Unit],
    device: torch.device = CPU,
    later: Sequence[Sequence[Unit]] = (),
) -> BlockLearner:
    """Build the learner of block k around its `units`, whose weights are kept.

    `later` are the units of the blocks after it, for rules that look ahead.
    """
    rule, credit, seed = program.rule, program.rule.credit, program.settings.seed
    objective = None
    if k == program.blocks:
        objective = TaskLoss()
    elif program.assessed(k):
        with seeded(CPU, seed, "objective", k):
            objective = rule.objective(_site(program, k, later))
    receptor = None
    if k < program.blocks:
        with seeded(CPU, seed, "receptor", k):
            shape = program.output_shapes[k - 1]
            receptor = credit.receptor(shape, program.classes, program.target_shape)
    kind, more = _learner(program, k)
    return kind(
        index=k,
        last=program.blocks,
        units=units,
        objective=objective,
        credit=credit,
        settings=program.settings,
        device=device,
        receptor=receptor,
        publications=[Publication(r) for r in program.readings_of(k)],
        reading=program.reading(k),
        image=rule.needs_image,
        codec=_codec(program),
        all_train=program.all_train,
        input_type=program.entering_type(k),
        auxiliary_type=program.type_beside(k),
        **more,
    )


def _codec(program: Program) -> Codec:
    """The codec of the run's messages; a residual stream of tokens has one width throughout."""
    return make_codec(
        program.settings.codec,
        width=program.output_shapes[0][-1],
        rank=program.subspace,
        vocabulary=program.classes if program.target_shape else None,
    )


def _learner(program: Program, k: int) -> tuple[type[BlockLearner], dict[str, int]]:
    """The kind of learner that a rule's blocks are."""
    credit = program.rule.credit
    if isinstance(credit, Reconcile):
        return ReconcilingBlock, {}
    if isinstance(credit, Delayed) and credit.delay(k, program.blocks):
        return DelayedBlock, {}
    if program.rule.slots:
        return ReplayingBlock, {"slots": program.rule.slots}
    return BlockLearner, {}


def _site(program: Program, k: int, later: Sequence[Sequence[Unit]]) -> Site:
    return Site(
        index=k,
        last=program.blocks,
        shape=program.output_shapes[k - 1],
        classes=program.classes,
        steps=program.settings.steps,
        input_shape=program.input_shape,
        target_shape=program.target_shape,
        later=later,
    )


def build_feedback(program: Program, k: int, device: torch.device = CPU) -> FeedbackLearner:
    """Build the learner of feedback module k, 1 <= k < K."""
    network = program.rule.feedback_network
    assert network is not None
    feedback, latent = network
    with seeded(CPU, program.settings.seed, "feedback", k):
        readout = Readout(latent, program.output_shapes[k - 1])
        size = None
        if program.feedback_chain and k < program.blocks - 1:
            above = Readout(latent, program.output_shapes[k])
            size = above.units * above.family.parameters
        module = FeedbackModule(
            feedback,
            classes=program.classes,
            size=size,
            units=readout.units,
            family=readout.family,
        )
    settings = program.settings
    if feedback.optimizer is not None:
        settings = replace(settings, optimizer=feedback.optimizer)
    return FeedbackLearner(
        k,
        module,
        program.rule.table_loss(readout),
        program.feedback_delay,
        program.feedback_chain,
        settings,
        device,
        program.auxiliary_type,
    )
