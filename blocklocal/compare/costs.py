"""What a rule costs besides backprop: parameters, operations, memory, messages. Counts, no times.

Training steps of the sequential engine are counted, on the first batch of the run, after all
warm-ups and delays are over: one step, or one period of a rule whose steps differ. The numbers are
the same on every machine; docs/compare.md defines each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from blocklocal.compare.meters import FlopMeter, StepMeter
from blocklocal.preparation import Prepared
from learning.build import Program
from learning.messages import block_name, feedback_name
from learning.rules import Backprop
from learning.sequential import SequentialEngine
from learning.units import copied
from orchestrator.limits import period_of
from orchestrator.memory import persistent


@dataclass(frozen=True)
class Costs:
    """What one step of a rule costs, with one shard after the other.

    Attributes:
        parameters: trained parameters of the network itself.
        extra_parameters: trained parameters of auxiliary networks and feedback modules.
        flops: operations of a whole step, by the formulas of `torch.utils.flop_counter`.
        backprop_flops: the same of backprop on the same blocks.
        activation_bytes: for each block, the most it keeps for backward passes at one time.
        bytes_forward: of messages from a block towards later ones.
        bytes_back: of messages towards earlier blocks: gradients, feedback, weights.
        bytes_beside: of messages between a block and its own feedback module.
    """

    parameters: int
    extra_parameters: int
    flops: int
    backprop_flops: int
    activation_bytes: tuple[int, ...]
    bytes_forward: int
    bytes_back: int
    bytes_beside: int

    @property
    def extra_flops(self) -> float:
        """Operations beyond backprop's, as a share of backprop's."""
        return self.flops / self.backprop_flops - 1 if self.backprop_flops else 0.0


def measure_costs(prepared: Prepared) -> Costs:
    """Count a step of a prepared run; its network stays as it is."""
    settings = prepared.program.settings
    # With one step to go, what rises over a share of all steps is up from step 1 on. Weights stay.
    still = settings.optimizer.model_copy(update={"lr": 0.0})
    steady = replace(prepared.program, settings=replace(settings, steps=1, optimizer=still))
    engine = _engine(prepared, steady)
    learners = {block_name(b.index): b for b in engine.blocks}
    learners |= {feedback_name(k): f for k, f in engine.feedback.items()}
    own = {id(p): p for b in engine.blocks for u in b.units for p in u.module.parameters()}
    trained = {id(p): p for learner in learners.values() for p in learner.updater.parameters}
    network = sum(p.numel() for p in own.values() if p.requires_grad)
    meter = StepMeter(t for learner in learners.values() for t in persistent(learner))
    for name, learner in learners.items():
        meter.follow(name, learner)
    batch = {shard: prepared.batches.shard(0, shard) for shard in range(steady.settings.shards)}
    flops, period = FlopMeter(), period_of(prepared.program)
    first = max(1, *(block.delay for block in engine.blocks))
    with meter.watching():
        for step in range(first):
            engine.train_step(step, lambda _, shard: batch[shard])
        meter.restart()
        with flops:
            for step in range(first, first + period):
                engine.train_step(step, lambda _, shard: batch[shard])
    reference, backprop_flops = _engine(prepared, replace(steady, rule=Backprop())), FlopMeter()
    with backprop_flops:
        reference.train_step(0, lambda _, shard: batch[shard])
    return Costs(
        parameters=network,
        extra_parameters=sum(p.numel() for p in trained.values()) - network,
        flops=round(flops.flops / period),
        backprop_flops=backprop_flops.flops,
        activation_bytes=tuple(meter.peak[b.index] for b in engine.blocks),
        bytes_forward=round(meter.forward / period),
        bytes_back=round(meter.back / period),
        bytes_beside=round(meter.beside / period),
    )


def _engine(prepared: Prepared, program: Program) -> SequentialEngine:
    blocks = prepared.plan.units_of_blocks(prepared.units)
    return SequentialEngine(program, [copied(block) for block in blocks])
