"""Residual networks for small images."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from learning.bounds import Depth, Depths, Pixels, Strides, Widths
from learning.errors import UserError
from learning.networks.common import check_images
from learning.settings import Settings

# The networks that papers name, for images of 32x32 pixels. Shortcuts that change the shape are
# projections in all of them.
_PRESETS: dict[str, dict[str, Any]] = {
    "resnet18": {"block": "basic", "widths": (64, 128, 256, 512), "depths": (2, 2, 2, 2)},
    "resnet32": {"block": "basic", "widths": (16, 32, 64), "depths": (5, 5, 5)},
    "resnet50": {"block": "bottleneck", "widths": (64, 128, 256, 512), "depths": (3, 4, 6, 3)},
    "resnet110": {"block": "basic", "widths": (16, 32, 64), "depths": (18, 18, 18)},
}


class ResNetSettings(Settings):
    """A residual network for small images (He et al. 2016, the CIFAR variant).

    The default is CIFAR ResNet-18; every residual block is one unit, the stem and the head too.
    A preset sets `block`, `widths` and `depths`.
    """

    kind: Literal["resnet"] = "resnet"
    preset: Literal["resnet18", "resnet32", "resnet50", "resnet110"] | None = None
    block: Literal["basic", "bottleneck"] = "basic"
    widths: Widths = Field(default=(64, 128, 256, 512), min_length=1)
    depths: Depth | Depths = 2
    strides: Strides | None = None
    head_grid: Pixels = Field(default=1, description="the head reads a pooled grid x grid image")

    @model_validator(mode="after")
    def _apply_the_preset(self) -> Self:
        if self.preset is not None:
            for name, value in _PRESETS[self.preset].items():
                # The resolved configuration of a run has the preset and its values.
                if name in self.model_fields_set and getattr(self, name) != value:
                    raise ValueError(
                        f"network.{name} = {getattr(self, name)} is not that of network.preset = "
                        f"{self.preset}, {value}: leave one of them out"
                    )
                object.__setattr__(self, name, value)  # the model itself is frozen
        return self

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build for images of `input_shape` = (channels, height, width)."""
        check_images(self.kind, input_shape)
        n = len(self.widths)
        depths = (self.depths,) * n if isinstance(self.depths, int) else self.depths
        strides = (1,) + (2,) * (n - 1) if self.strides is None else self.strides
        if len(depths) != n or len(strides) != n:
            raise UserError(
                f"network.depths = {depths} and network.strides = {strides} must have one entry "
                f"for each of the {n} network.widths"
            )
        residual = ResidualBlock if self.block == "basic" else BottleneckBlock
        stem = nn.Conv2d(input_shape[0], self.widths[0], 3, padding=1, bias=False)
        units: OrderedDict[str, nn.Module] = OrderedDict()
        units["stem"] = _Stem(stem)
        size = self.widths[0]
        for i, (width, depth, stride) in enumerate(zip(self.widths, depths, strides, strict=True)):
            stage = OrderedDict()
            for j in range(depth):
                stage[str(j)] = residual(size, width, stride if j == 0 else 1)
                size = width * residual.expansion
            units[f"layer{i + 1}"] = nn.Sequential(stage)
        units["head"] = _ImageHead(size, classes, self.head_grid)
        return nn.Sequential(units)


class _Stem(nn.Module):
    """Convolution, batch norm, ReLU: (B, C, H, W) to (B, width, H, W)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv
        self.norm = nn.BatchNorm2d(conv.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in, H, W) to (B, out, H/stride, W/stride)."""

    expansion: ClassVar[int] = 1

    def __init__(self, size: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(size, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or size != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(size, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolution: (B, in, H, W) to (B, 4 * width, H/stride, W/stride)."""

    expansion: ClassVar[int] = 4

    def __init__(self, size: int, width: int, stride: int) -> None:
        super().__init__()
        out = self.expansion * width
        self.conv1 = nn.Conv2d(size, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or size != out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(size, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        h = torch.relu(self.norm2(self.conv2(h)))
        return torch.relu(self.norm3(self.conv3(h)) + self.shortcut(x))


class _ImageHead(nn.Module):
    """Pooling to grid x grid and a linear layer: (B, C, H, W) to (B, classes)."""

    def __init__(self, size: int, classes: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(size * grid**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.adaptive_avg_pool2d(x, self.grid).flatten(1))
