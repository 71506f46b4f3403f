"""One block of a network of equal layers, trained on messages of the right shapes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.live_bytes import LiveBytes
from blocklocal import arrays_dataset
from blocklocal.config import make_config
from blocklocal.preparation import prepare
from learning.build import build_block
from learning.learners.block import BlockLearner
from learning.messages import Message

CLASSES = 10
STEPS = 3


@dataclass(frozen=True)
class Case:
    """Block `k` of `blocks` of a network of `depth` equal layers.

    Attributes:
        width: features of an MLP's layer, channels of a convolution's.
        repeat: which of the fresh processes this is.
    """

    network: str
    rule: str
    depth: int
    width: int
    batch: int
    blocks: int
    k: int
    repeat: int = 0


class Residual(nn.Module):
    """Convolution, batch norm and ReLU beside the identity: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.convolution(x)))


def network(case: Case) -> tuple[nn.Module, tuple[int, ...]]:
    """The whole network, with a classifier in its last block, and the shape of its input."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if case.network == "mlp":
        for i in range(case.depth):
            layers[f"layer{i + 1}"] = nn.Sequential(nn.Linear(case.width, case.width), nn.ReLU())
        layers["head"] = nn.Linear(case.width, CLASSES)
        return nn.Sequential(layers), (case.width,)
    for i in range(case.depth):
        layers[f"layer{i + 1}"] = Residual(case.width)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(case.width, CLASSES))
    layers["head"] = pooled
    return nn.Sequential(layers), (case.width, 16, 16)


def learner_of(case: Case) -> tuple[BlockLearner, list[tuple[int, ...]]]:
    """The learner of the case's block, and the shapes of the boundaries 0 to K without batch."""
    each = case.depth // case.blocks
    config = make_config(
        {
            "blocks": {"at": [f"layer{1 + i * each}" for i in range(1, case.blocks)]},
            "rule": {"kind": case.rule},
            "optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.0},
            "training": {"steps": 2 * STEPS, "batch": case.batch},
            "engine": {"kind": "sequential", "resources": {"threads": 1}},
            "tracking": {"enabled": False},
        }
    )
    model, shape = network(case)
    x = np.zeros((case.batch, *shape), dtype=np.float32)
    y = np.arange(case.batch) % CLASSES
    data = arrays_dataset(x, y, x[:1], y[:1], validation=0, classes=CLASSES, normalize=False)
    ready = prepare(config, model=model, dataset=data)
    units = ready.plan.units_of_blocks(ready.units)
    learner = build_block(ready.program, case.k, units[case.k - 1])
    return learner, [shape, *(block.output_shape for block in ready.plan.blocks)]


def train_step(
    learner: BlockLearner,
    case: Case,
    step: int,
    shapes: Sequence[tuple[int, ...]],
    live: LiveBytes | None = None,
) -> None:
    """One step of a block; what other blocks would send is made up."""
    message: Message = {
        "x": torch.ones(case.batch, *shapes[case.k - 1]),
        "y": torch.arange(case.batch) % CLASSES,
    }
    learner.forward(step, 0, message)
    del message  # the learner keeps what it needs
    if case.rule == "backprop" and case.k < case.blocks:
        gradient = torch.ones(case.batch, *shapes[case.k])
        learner.receive(step, 0, case.blocks, {"gradient": gradient})
        del gradient
    else:
        learner.assess(step, 0)
    if live is not None:
        live.before_update()
    learner.update(step)
