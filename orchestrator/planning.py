"""How a plan is made: units are profiled, and cut into blocks at names or by balance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Literal

from torch import Tensor

from learning.doing import doing
from learning.errors import UserError
from learning.units import Unit, check_ownership, split
from orchestrator.partition import partition, refine
from orchestrator.plan import BlockPlan, Plan, group
from orchestrator.profile import (
    UnitProfile,
    UnitSize,
    block_activation_bytes,
    measure_units,
    profile_units,
)
from orchestrator.settings import BlocksSettings

BlockCosts = Callable[[list[list[Unit]], list[tuple[int, ...]]], Sequence[float] | None]
"""The units and output shapes of blocks to what each costs; None where that cannot be had."""


def make_plan(
    units: Sequence[Unit],
    settings: BlocksSettings,
    sample: Tensor,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    profile: bool = False,
    measure: BlockCosts | None = None,
) -> Plan:
    """Cut `units` into blocks.

    By time and by memory, a cut is found in two steps. The first is exact for what the units take
    or keep when run alone. The second, where `measure` is given, moves cuts while that says that
    the largest block gets smaller: see `orchestrator.partition.refine`. Without it, as for
    backprop, whose blocks are nothing but their units, the first cut stays.

    Args:
        units: all units of the network, in order.
        settings: where to cut; explicit names in `at` win over `count` and `balance`.
        sample: (B, ...) input of the first unit, B the global batch; values matter little.
        cpus: CPUs each block's actor reserves.
        gpus: GPUs each block's actor reserves.
        profile: time the units to fill `time_share`; balancing by time does it anyway.
        measure: what the blocks of a cut cost under the rule, in time or in memory.

    Raises:
        UserError: for impossible cuts, a unit that fails on its input, or a tensor two blocks own.
    """
    # Impossible cuts are found before the slow part.
    blocks = split(units, settings.at) if settings.at != "auto" else None
    if blocks is None:
        partition([0] * len(units), settings.count)
    timed = profile or (blocks is None and settings.balance == "time")
    if timed:
        doing(f"timing the {len(units)} units of the network")
    sizes = profile_units(units, sample) if timed else measure_units(units, sample)
    if blocks is None:
        costs = [_cost(size, settings.balance) for size in sizes]
        counts = partition(costs, settings.count)
        check_ownership(group(units, counts))
        if measure is not None and settings.balance != "parameters" and settings.count > 1:
            doing("measuring cuts under the rule")
            counts = refine(counts, lambda counts: _measured(units, sizes, counts, measure))
        blocks = group(units, counts)
    activations = block_activation_bytes(blocks, sample)
    total = sum(_seconds(size) for size in sizes)
    plans, start, shape = [], 0, tuple(sample.shape[1:])
    for index, (block, activation) in enumerate(zip(blocks, activations, strict=True), start=1):
        own = sizes[start : start + len(block)]
        share = min(sum(_seconds(size) for size in own) / total, 1.0) if timed and total else None
        plans.append(
            BlockPlan(
                index=index,
                units=tuple(unit.name for unit in block),
                # Not the sum over units: two units of one block may share a parameter.
                parameters=sum(
                    {p: p.numel() for u in block for p in u.module.parameters()}.values()
                ),
                input_shape=shape,
                output_shape=own[-1].output_shape,
                boundary_bytes=own[-1].output_bytes,
                activation_bytes=activation,
                time_share=share,
                cpus=cpus,
                gpus=gpus,
            )
        )
        start, shape = start + len(block), own[-1].output_shape
    return Plan(blocks=tuple(plans))


def _measured(
    units: Sequence[Unit],
    sizes: Sequence[UnitSize],
    counts: Sequence[int],
    measure: BlockCosts,
) -> Sequence[float] | None:
    blocks = group(units, counts)
    try:
        check_ownership(blocks)
    except UserError:
        return None  # units that share a tensor stay together
    return measure(blocks, [sizes[end - 1].output_shape for end in accumulate(counts)])


def _cost(size: UnitSize, balance: Literal["time", "memory", "parameters"]) -> float:
    if balance == "time":
        return _seconds(size)
    return size.activation_bytes if balance == "memory" else size.parameters


def _seconds(size: UnitSize) -> float:
    timed = isinstance(size, UnitProfile)
    return size.forward_seconds + size.backward_seconds if timed else 0.0
