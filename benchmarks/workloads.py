"""The networks of the benchmarks: K equal blocks of one kind, on made-up data.

A step's time is the same in all blocks, so that what is lost is lost between them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from blocklocal import arrays_dataset
from blocklocal.config import RunConfig, make_config
from blocklocal.preparation import Prepared, prepare
from learning.networks.attention import TransformerBlock
from orchestrator.settings import SourcePlace, Transport

CLASSES = 10
SIDE = 16  # pixels of the convnet's images
TOKENS = 64  # of a row of the transformer's
LEARNING_RATE, MOMENTUM = 0.01, 0.9


@dataclass(frozen=True)
class Workload:
    """K blocks of `layers` layers each; the head is a part of the last block.

    Attributes:
        kind: `mlp`: linear and ReLU on (B, width). `conv`: 3x3 and ReLU on (B, width, SIDE, SIDE).
            `gpt`: transformer blocks on (B, TOKENS, width).
        spread: an MLP's activations (B, width) cross a boundary as (B, width, spread, spread),
            repeated, so that messages grow while the work of the layers stays.
    """

    kind: Literal["mlp", "conv", "gpt"]
    width: int
    batch: int
    layers: int = 4
    blocks: int = 2
    spread: int = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one row, without batch."""
        shapes = {
            "mlp": (self.width,),
            "conv": (self.width, SIDE, SIDE),
            "gpt": (TOKENS * self.width,),
        }
        return shapes[self.kind]

    @property
    def message_bytes(self) -> int:
        """Of the float32 activations that cross a boundary in one step, labels not counted."""
        return 4 * self.batch * int(np.prod(self.input_shape)) * self.spread**2

    @property
    def cuts(self) -> list[str]:
        """Names of the layers that start blocks 2 to K."""
        return [f"layer{k * self.layers + 1}" for k in range(1, self.blocks)]

    def tiny(self) -> Workload:
        """The same kind, small enough for a test."""
        return replace(self, width=16, batch=16, layers=1)

    def network(self) -> nn.Sequential:
        """The whole network, the same weights each time; the global generator is kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers: OrderedDict[str, nn.Module] = OrderedDict()
            for i in range(1, self.blocks * self.layers + 1):
                layers[f"layer{i}"] = nn.Sequential(*self._layer(i))
            layers["head"] = nn.Sequential(*self._head())
            return nn.Sequential(layers)

    def _layer(self, i: int) -> list[nn.Module]:
        before, after = (i - 1) % self.layers == 0, i % self.layers == 0
        if self.kind == "conv":
            return [nn.Conv2d(self.width, self.width, 3, padding=1), nn.ReLU()]
        if self.kind == "gpt":
            block = TransformerBlock(
                self.width, 4, hidden=4 * self.width, norm=nn.RMSNorm, bias=False, causal=True
            )
            return [nn.Unflatten(1, (TOKENS, self.width)), block] if i == 1 else [block]
        layer: list[nn.Module] = [nn.Linear(self.width, self.width), nn.ReLU()]
        if self.spread > 1 and before and i > 1:
            layer.insert(0, Gather())
        if self.spread > 1 and after and i < self.blocks * self.layers:
            layer.append(Spread(self.spread))
        return layer

    def _head(self) -> list[nn.Module]:
        linear = nn.Linear(self.width, CLASSES)
        if self.kind == "conv":
            return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear]
        return [MeanToken(), linear] if self.kind == "gpt" else [linear]


class Spread(nn.Module):
    """Repeats features over a square: (B, D) to (B, D, side, side), contiguous."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, h: Tensor) -> Tensor:
        return h[:, :, None, None].expand(-1, -1, self.side, self.side).contiguous()


class Gather(nn.Module):
    """The mean over the square: (B, D, side, side) to (B, D)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean((2, 3))


class MeanToken(nn.Module):
    """The mean over tokens: (B, T, C) to (B, C)."""

    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1)


def configuration(
    workload: Workload,
    steps: int,
    *,
    rule: str = "local",
    order: str = "1f1b",
    shards: int = 1,
    transport: Transport = "object_store",
    source: SourcePlace = "block1",
) -> RunConfig:
    """A run of `steps` steps with plain SGD, one thread and an equal share of CPUs a block.

    Args:
        order: of forwards and backwards over the shards, where gradients come back.
        transport: of our engine's messages.
        source: who makes our engine's batches.
    """
    return make_config(
        {
            "blocks": {"at": workload.cuts},
            "rule": {"kind": rule, "order": order},
            "optimizer": {"kind": "sgd", "lr": LEARNING_RATE, "momentum": MOMENTUM},
            "training": {"steps": steps, "batch": workload.batch, "shards": shards},
            "engine": {"resources": {"threads": 1}, "transport": transport, "source": source},
            "tracking": {"enabled": False},
        }
    )


def prepared(workload: Workload, config: RunConfig) -> Prepared:
    """Program, plan, units and batches of a run of the workload."""
    rows = 4 * workload.batch
    x = np.random.default_rng(0).standard_normal((rows, *workload.input_shape), dtype=np.float32)
    y = np.arange(rows) % CLASSES
    data = arrays_dataset(x, y, x[:CLASSES], y[:CLASSES], validation=0, classes=CLASSES)
    return prepare(config, model=workload.network(), dataset=data)
