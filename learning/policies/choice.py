"""The policies of a run: its codec, the updater of a block, and what is refused."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from learning.errors import UserError
from learning.policies.codecs import BFloat16, Codec, Float16, Int8
from learning.policies.fused import FusedUpdater
from learning.policies.proximal import ProximalPreconditioner
from learning.policies.subspace import Subspace
from learning.policies.update import Updater
from learning.settings import (
    BFloat16CodecSettings,
    CodecSettings,
    Float16CodecSettings,
    Int8CodecSettings,
    OptimizerSettings,
    ScheduleSettings,
    SubspaceCodecSettings,
    UpdateSettings,
)


def check_update(
    update: UpdateSettings,
    optimizer: OptimizerSettings,
    *,
    shards: int,
    losses: int = 1,
    second_order: bool = False,
) -> None:
    """Check that an update policy can be right for a rule.

    Args:
        update: the policy.
        optimizer: of the blocks.
        shards: microbatches of a step.
        losses: the most losses that reach one parameter in one step.
        second_order: whether the rule differentiates gradients, or corrects them before the update.

    Raises:
        UserError: for what backward fusion cannot do.
    """
    if not update.fused:
        return
    if shards > 1:
        raise UserError(
            f"update.fused = true steps a parameter at the first gradient, but training.shards = "
            f"{shards} gradients make a step: use training.shards = 1 or update.fused = false"
        )
    if optimizer.clip is not None:
        raise UserError(
            f"update.fused = true never has all gradients together, but optimizer.clip = "
            f"{optimizer.clip} needs their norm: use optimizer.clip = null or update.fused = false"
        )
    if update.proximal is not None:
        raise UserError(
            f"update.fused = true hands on gradients one by one, but update.proximal = "
            f"{update.proximal} solves for weight and bias together: use update.proximal = null or "
            "update.fused = false"
        )
    if second_order:
        raise UserError(
            "update.fused = true frees each gradient at once, but this rule goes on computing with "
            "gradients: use another rule.kind or update.fused = false"
        )
    if losses > 1:
        raise UserError(
            f"update.fused = true steps a parameter at the first gradient, but under this rule "
            f"{losses} losses reach a parameter: use a rule with one, or update.fused = false"
        )


def make_updater(
    parameters: Iterable[tuple[str, nn.Parameter]],
    optimizer: OptimizerSettings,
    schedule: ScheduleSettings,
    update: UpdateSettings,
    *,
    module: nn.Module,
    index: int,
    steps: int,
    batch: int,
    shards: int,
    alone: bool = False,
) -> Updater:
    """Build the updater of a block.

    Args:
        parameters: by name, those of `module` and perhaps others.
        optimizer: its settings.
        schedule: of the learning rate.
        update: the policy; `check_update` has passed it.
        module: whose linear layers take proximal steps.
        index: number of the block, for the learning rate.
        steps: of the run, for the schedule.
        batch: samples of a step, over all shards.
        shards: microbatches of a step.
        alone: whether updates are of the shards that end here, however many of the step's.
    """
    kind = FusedUpdater if update.fused else Updater
    proximal = None
    if update.proximal is not None:
        proximal = ProximalPreconditioner(module, update.proximal)
    return kind(
        parameters,
        optimizer,
        schedule,
        index=index,
        steps=steps,
        batch=batch,
        shards=shards,
        alone=alone,
        proximal=proximal,
    )


def make_codec(
    settings: CodecSettings,
    *,
    width: int | None = None,
    rank: int | None = None,
    vocabulary: int | None = None,
) -> Codec:
    """Build the codec of a run.

    The subspace codec alone needs to know the network.

    Args:
        settings: which one.
        width: D of the residual stream (B, T, D).
        rank: of the subspace that the network's stream stays in, None without one.
        vocabulary: number of tokens.

    Raises:
        UserError: for the codec of a subspace that the network does not stay in.
    """
    if isinstance(settings, BFloat16CodecSettings):
        return BFloat16()
    if isinstance(settings, Float16CodecSettings):
        return Float16()
    if isinstance(settings, Int8CodecSettings):
        return Int8()
    if isinstance(settings, SubspaceCodecSettings):
        if width is None or rank is None or vocabulary is None:
            raise UserError(
                "codec.kind = subspace needs a network whose residual stream stays in a subspace: "
                "set network.subspace to its rank, which network.kind = gpt has, or use codec.kind "
                "= int8"
            )
        return Subspace(width, rank, vocabulary)
    return Codec()
