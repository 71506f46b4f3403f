"""How far a rule's updates point where backprop's would: the cosine of both, block by block."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from learning.rules.backprop import Backprop
from learning.sequential import SequentialEngine, ShardOf
from learning.units import Unit, copied

AUXILIARY = "auxiliary."
"""First part of the names of parameters that are not the network's own."""


def agreement(engine: SequentialEngine, step: int, shard_of: ShardOf) -> dict[str, float]:
    """Cosine between the gradient each block is about to follow and backprop's.

    Both are what optimizers get at `step`, before clipping, for the block's own parameters, at the
    engine's weights and on its batch; under a rule that delays gradients, the block's is of an
    earlier batch. The engine stays as it is: copies run the step.

    Args:
        engine: before its step `step`.

    Returns:
        By block, without the blocks that have no gradient at this step or one of norm zero.
    """
    backprop = replace(engine.program, rule=Backprop())
    reference = SequentialEngine(backprop, _units(engine))
    twin = SequentialEngine(engine.program, _units(engine))
    twin.load_state_dict(engine.state_dict(), step)  # with what is under way between steps
    mine, true = (_gradients(e, step, shard_of) for e in (twin, reference))
    cosines = {block: _cosine(mine[block], true[block]) for block in mine}
    return {block: cosine for block, cosine in cosines.items() if cosine is not None}


def _units(engine: SequentialEngine) -> list[list[Unit]]:
    return [copied(block.units) for block in engine.blocks]


def _gradients(
    engine: SequentialEngine, step: int, shard_of: ShardOf
) -> dict[str, dict[str, Tensor]]:
    """What the blocks of an engine, which is used up, hand their optimizers."""
    handed: dict[str, dict[str, Tensor]] = {}
    for block in engine.blocks:
        own = handed[f"block{block.index}"] = {}
        block.updater.observer = partial(_note, own)
    engine.train_step(step, shard_of)
    return handed


def _note(own: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
    # Copies: gradients are only lent.
    own |= {n: g.double().clone() for n, g in gradients.items() if not n.startswith(AUXILIARY)}


def _cosine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float | None:
    """Of two vectors by name; a name that one of them lacks counts as zeros there."""
    product = sum(((left[n] * right[n]).sum() for n in left if n in right), torch.zeros(()))
    norm = _norm(left) * _norm(right)
    return max(-1.0, min(1.0, float(product) / norm)) if norm else None


def _norm(vector: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(float((g * g).sum()) for g in vector.values()))
