"""Builds the learners of a run, the same bits in every process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from learning.block import BlockLearner, LearnerSettings
from learning.errors import UserError
from learning.feedback import FeedbackLearner, FeedbackModule
from learning.messages import Message
from learning.numerics import seeded
from learning.objectives import TaskLoss
from learning.readout import Readout
from learning.rules import Rule
from learning.units import Unit

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Program:
    """A rule applied to a network that is cut into blocks; small enough to send to every actor.

    Attributes:
        output_shapes: of blocks 1..K, without batch.
    """

    rule: Rule
    settings: LearnerSettings
    output_shapes: tuple[tuple[int, ...], ...]
    classes: int

    @property
    def blocks(self) -> int:
        """K."""
        return len(self.output_shapes)

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


def build_block(
    program: Program, k: int, units: Sequence[Unit], device: torch.device = CPU
) -> BlockLearner:
    """Build the learner of block k around its `units`, whose weights are kept."""
    objective = None
    if k == program.blocks:
        objective = TaskLoss()
    elif program.assessed(k):
        with seeded(CPU, program.settings.seed, "objective", k):
            objective = program.rule.objective(
                program.output_shapes[k - 1], program.classes, program.settings.steps
            )
    return BlockLearner(
        k, program.blocks, units, objective, program.rule.credit, program.settings, device
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
    return FeedbackLearner(k, module, readout.temperature, program.feedback_delay, settings, device)


def check_program(program: Program) -> None:
    """Build everything of a program but the blocks' own units, to find what cannot be built.

    Raises:
        UserError: what an actor would otherwise fail with after it was started.
    """
    rates = program.settings.optimizer.lr
    if isinstance(rates, tuple) and len(rates) != program.blocks:
        raise UserError(
            f"optimizer.lr lists {len(rates)} values for {program.blocks} blocks: give one a block"
        )
    upstream: Message | None = None
    tables: dict[int, Message] = {}
    for k in range(program.feedback_modules, 0, -1):
        source = upstream if program.feedback_chain else None
        tables[k], upstream = build_feedback(program, k).forward(0, source)
    samples = program.settings.batch // program.settings.shards
    for k in range(1, program.blocks + 1):
        learner = build_block(program, k, ())
        shape = program.output_shapes[k - 1]
        if learner.objective is None:
            continue
        h = torch.zeros(samples, *shape, dtype=learner.numerics.dtype)
        try:
            learner.objective(h, torch.zeros(samples, dtype=torch.long), tables.get(k))
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the objective of block {k} cannot work on {samples} samples of shape {shape} "
                f"({reason}): cut the network at another unit or use fewer training.shards"
            ) from error
