"""Checks of a program before anything starts: what cannot be built, what cannot be right."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learning.build import CPU, Program, build_block, build_feedback
from learning.credit import Delayed, Reconcile
from learning.errors import UserError, one_line
from learning.learners.reconciling import ReconcilingBlock
from learning.memory import BUILD_ERRORS, building
from learning.messages import Message
from learning.numerics import seeded
from learning.objectives.base import Told
from learning.policies.choice import check_update
from learning.policies.compiled import check_compile, check_units
from learning.rules import BLL
from learning.settings import SubspaceCodecSettings
from learning.units import Unit, copied

SMALLER = "make it smaller by the settings of rule, or use a machine with more memory"


def check_program(program: Program, blocks: Sequence[Sequence[Unit]], sample: Tensor) -> None:
    """Build everything of a program on copies and try it once, to find what cannot work.

    Args:
        sample: a shard of inputs, (b, ...).

    Raises:
        UserError: what an actor would otherwise fail with after it was started, or what would
            train something else than it says.
    """
    for check in (_check_rates, _check_combinations):
        check(program)
    with building("the feedback network", SMALLER):
        tables = _tables(program)
    later = blocks if program.rule.looks_ahead else [()] * len(blocks)
    y = torch.zeros(len(sample), *program.target_shape, dtype=torch.long)
    for k in range(1, program.blocks + 1):
        with building(f"the auxiliary network of block {k}", SMALLER):
            learner = build_block(program, k, (), later=later[k:])
        shape = program.output_shapes[k - 1]
        if learner.objective is None:
            continue
        kind = program.output_types[k - 1] if program.output_types else learner.numerics.dtype
        if not kind.is_floating_point:
            raise UserError(
                f"block {k} gives {kind}, of which no loss can be formed: let its last unit "
                "give real numbers, cut the network at another unit or use rule.kind = backprop"
            )
        h = learner.numerics.for_own(torch.zeros(len(sample), *shape, dtype=kind))
        reading = program.reading(k)
        try:
            if reading is not None:
                unit = blocks[reading.publisher - 1][reading.unit]
                learner.objective.take(unit.module.state_dict())
            image = learner.numerics.for_own(sample) if program.rule.needs_image else None
            learner.objective(h, Told(y, tables.get(k), image))
        except UserError:
            raise
        except (*BUILD_ERRORS, KeyError) as error:
            reason = one_line(str(error), 160)
            raise UserError(
                f"the objective of block {k} cannot work on {len(sample)} samples of shape {shape} "
                f"({reason}): cut the network at another unit or use fewer training.shards"
            ) from error
    if len(sample) == 1:
        _check_one_sample(program, blocks, sample)
    if isinstance(program.rule.credit, Reconcile):
        _check_second_order(program, blocks, sample)
    if program.settings.precision.compile != "none":
        _check_units(program, blocks, sample)


@torch.no_grad()
def _check_one_sample(program: Program, blocks: Sequence[Sequence[Unit]], sample: Tensor) -> None:
    """Run a shard of one sample through copies of the blocks: batch statistics need more."""
    x = sample
    for k, units in enumerate(blocks, start=1):
        learner = build_block(program, k, copied(units))
        with learner.numerics.autocast():
            try:
                x = learner.chain(learner.entering(x))
            except ValueError as error:
                reason = " ".join(str(error).split())
                raise UserError(
                    f"block {k} cannot train on a shard of 1 sample ({reason}): use a larger "
                    "training.batch, fewer training.shards, or no batch normalisation"
                ) from error


def _check_units(program: Program, blocks: Sequence[Sequence[Unit]], sample: Tensor) -> None:
    """Trace copies of all blocks: what an actor would compile."""
    x = sample
    for k, units in enumerate(blocks, start=1):
        learner = build_block(program, k, copied(units))
        x = learner.entering(x)
        with seeded(CPU, program.settings.seed, "check", k), learner.numerics.autocast():
            check_units(learner.chain, program.settings.precision, k, x)
            with torch.no_grad():
                x = learner.chain(x)


def _tables(program: Program) -> dict[int, Message]:
    tables: dict[int, Message] = {}
    upstream: Message | None = None
    for k in range(program.feedback_modules, 0, -1):
        posts = build_feedback(program, k).forward(0, upstream)
        tables[k] = posts[0].message
        upstream = posts[1].message if len(posts) > 1 else None
    return tables


def _check_rates(program: Program) -> None:
    rates = program.settings.optimizer.lr
    if isinstance(rates, tuple) and len(rates) != program.blocks:
        raise UserError(
            f"optimizer.lr lists {len(rates)} values for {program.blocks} blocks: give one a block"
        )


def _check_combinations(program: Program) -> None:
    rule, settings = program.rule, program.settings
    credit, blocks = rule.credit, range(1, program.blocks + 1)
    compensated = isinstance(credit, Delayed) and credit.compensation > 0
    check_update(
        settings.update,
        settings.optimizer,
        shards=settings.shards,
        losses=max(len(hop.sources(k, program.blocks)) for hop in credit.hops() for k in blocks),
        second_order=isinstance(credit, Reconcile) or compensated,
    )
    check_compile(
        settings.precision,
        settings.update,
        credit,
        blocks=program.blocks,
        shards=settings.shards,
    )
    if rule.batch_coupled and settings.shards > 1:
        raise UserError(
            f"this rule's loss compares all samples of a batch, but training.shards = "
            f"{settings.shards} shows a block only a part of it: set training.shards to 1"
        )
    if isinstance(settings.codec, SubspaceCodecSettings):
        _check_subspace(program)
    if isinstance(rule.credit, Delayed) and rule.credit.compensation and settings.shards > 1:
        raise UserError(
            f"rule.compensation needs the gradient of the whole batch, but training.shards = "
            f"{settings.shards}: set training.shards to 1 or rule.compensation to 0"
        )


def check_lanes(program: Program, lanes: int) -> None:
    """Check that up to `lanes` lanes can share the shards of a step and change no bit.

    Rules whose losses, credits and updates are sums over shards can: what travels between steps,
    such as tables and weights, is then the same in every lane. Lanes that agree by outer steps come
    and go as well, and the same is refused.

    Args:
        program: which `check_program` has passed.
        lanes: the most that there may be at once (`lanes.max`).

    Raises:
        UserError: for what a lane would know and the others would not, or too few shards.
    """
    rule, settings, asked = program.rule, program.settings, f"lanes.max = {lanes}"
    if lanes == 1:
        return
    if settings.update.fused:
        reason = (
            "lanes add up their gradients before the update, but update.fused = true steps a "
            "parameter at the first: use update.fused = false or lanes.max = 1"
        )
    elif rule.batch_coupled:
        reason = (
            "lanes see a part of the batch each, but this rule's loss compares all samples of a "
            "batch: use lanes.max = 1 or another rule.kind"
        )
    elif any(rule.credit.delay(k, program.blocks) for k in range(1, program.blocks + 1)):
        reason = (
            "lanes may come and go between steps, but under this rule a lane keeps its shards "
            "until gradients come in a later step: use lanes.max = 1 or another rule.kind"
        )
    elif rule.slots:
        reason = (
            f"lanes would each draw from inputs that they kept themselves, but rule.buffer = "
            f"{rule.slots} is of the whole run: use lanes.max = 1 or rule.kind = local"
        )
    elif settings.precision.compile == "cuda-graphs":
        reason = (
            "lanes share several shards, but precision.compile = cuda-graphs has memory for one: "
            "use precision.compile = inductor or none, or lanes.max = 1"
        )
    elif lanes > settings.shards:
        reason = (
            f"lanes share the training.shards = {settings.shards} of a step, so some would have "
            f"none: use training.shards = {lanes} or more, or lanes.max = {settings.shards}"
        )
    else:
        return
    raise UserError(f"{asked}: {reason}")


def check_local_recovery(program: Program) -> None:
    """Check that a lost block may go back while the others keep their progress.

    Raises:
        UserError: under rules by which more crosses a step boundary than can be made anew.
    """
    rule, blocks = program.rule, range(1, program.blocks + 1)
    if any(rule.credit.delay(k, program.blocks) for k in blocks):
        reason = "gradients come in a later step, of forward passes that were given up"
    elif rule.slots:
        reason = "blocks draw from inputs that they kept"
    elif any(program.reading(k) for k in blocks):
        reason = "blocks read weights that others published in an earlier step"
    else:
        return
    raise UserError(
        f"engine.recovery.mode = local is not possible with this rule, under which {reason}: use "
        "engine.recovery.mode = exact"
    )


def _check_subspace(program: Program) -> None:
    """What travels must be the residual stream, or a gradient that matters in the subspace only."""
    rule = program.rule
    if isinstance(rule.credit, Reconcile):
        other = "this rule compares whole gradients"
    elif rule.credit.broadcast:
        other = "this rule sends errors of scores"
    elif isinstance(rule, BLL) and rule.bootstrap.share:
        other = f"rule.bootstrap.share = {rule.bootstrap.share:g} sends on posteriors"
    else:
        return
    raise UserError(
        f"codec.kind = subspace keeps of a message what lies in the residual stream's subspace, "
        f"but {other}: use codec.kind = bfloat16"
    )


def _check_second_order(program: Program, blocks: Sequence[Sequence[Unit]], sample: Tensor) -> None:
    """Differentiate the penalty of every block once, on copies: some kernels cannot."""
    message: Message = {"x": sample[:2]}  # enough for batch statistics
    message["y"] = torch.zeros(len(message["x"]), *program.target_shape, dtype=torch.long)
    step = program.settings.steps  # where the weight of the penalty is past its warm-up
    for k, units in enumerate(blocks, start=1):
        learner = build_block(program, k, copied(units))
        try:
            posts = learner.forward(step, 0, message)
            assert isinstance(learner, ReconcilingBlock)
            learner.check_penalty(step, 0)
            learner.assess(step, 0)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"rule.kind = reconcile differentiates block {k} twice, which fails ({reason}): "
                "use layers whose gradient is differentiable, or another rule"
            ) from error
        if posts:
            message = posts[0].message
