"""Built-in networks, each an `nn.Sequential` of named units, and the user's own by import path."""

from __future__ import annotations

import importlib
import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from learning.errors import UserError
from learning.settings import Settings

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
Activation = Literal["relu", "gelu", "tanh"]


class MLPSettings(Settings):
    """A multilayer perceptron: one unit a hidden layer, and the linear head."""

    kind: Literal["mlp"] = "mlp"
    widths: tuple[Annotated[int, Field(ge=1)], ...] = (256, 256, 256)
    activation: Activation = "relu"
    normalization: Literal["none", "batch", "layer"] = "batch"
    dropout: float = Field(default=0.0, ge=0, lt=1)

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build for inputs of `input_shape` (without batch)."""
        size = 1
        for extent in input_shape:
            size *= extent
        units: OrderedDict[str, nn.Module] = OrderedDict()
        for i, width in enumerate(self.widths, start=1):
            layer = _DenseLayer(size, width, self, flatten=i == 1)
            units[f"layer{i}"] = layer
            size = width
        head = nn.Linear(size, classes)
        units["head"] = head if self.widths else nn.Sequential(nn.Flatten(), head)
        return nn.Sequential(units)


class _DenseLayer(nn.Module):
    """Linear, normalisation, activation, dropout: (B, ...) to (B, width)."""

    def __init__(self, size: int, width: int, settings: MLPSettings, *, flatten: bool) -> None:
        super().__init__()
        self.flatten = nn.Flatten() if flatten else nn.Identity()
        self.linear = nn.Linear(size, width)
        norms = {"none": nn.Identity, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
        norm = norms[settings.normalization]
        self.norm = norm() if settings.normalization == "none" else norm(width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.linear(self.flatten(x)))))


class ResNetSettings(Settings):
    """A residual network for small images (He et al. 2016, the CIFAR variant).

    The default is CIFAR ResNet-18; every residual block is one unit, the stem and the head too.
    """

    kind: Literal["resnet"] = "resnet"
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(64, 128, 256, 512), min_length=1
    )
    depths: int | tuple[Annotated[int, Field(ge=1)], ...] = 2
    strides: tuple[Annotated[int, Field(ge=1)], ...] | None = None
    head_grid: int = Field(default=1, ge=1, description="the head reads a pooled grid x grid image")

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build for images of `input_shape` = (channels, height, width)."""
        if len(input_shape) != 3:
            raise UserError(
                f"network.kind = resnet needs images (channels, height, width), not {input_shape}: "
                "use network.kind = mlp"
            )
        n = len(self.widths)
        depths = (self.depths,) * n if isinstance(self.depths, int) else self.depths
        strides = (1,) + (2,) * (n - 1) if self.strides is None else self.strides
        if len(depths) != n or len(strides) != n:
            raise UserError(
                f"network.depths = {depths} and network.strides = {strides} must have one entry "
                f"for each of the {n} network.widths"
            )
        stem = nn.Conv2d(input_shape[0], self.widths[0], 3, padding=1, bias=False)
        units: OrderedDict[str, nn.Module] = OrderedDict()
        units["stem"] = _Stem(stem)
        size = self.widths[0]
        for i, (width, depth, stride) in enumerate(zip(self.widths, depths, strides, strict=True)):
            stage = OrderedDict()
            for j in range(depth):
                stage[str(j)] = ResidualBlock(size, width, stride if j == 0 else 1)
                size = width
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


class _ImageHead(nn.Module):
    """Pooling to grid x grid and a linear layer: (B, C, H, W) to (B, classes)."""

    def __init__(self, size: int, classes: int, grid: int) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(size * grid**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.adaptive_avg_pool2d(x, self.grid).flatten(1))


class CustomSettings(Settings):
    """The user's own network: `factory` is `package.module:function`, called with `arguments`.

    The function returns an `nn.Sequential` that maps (B, *input_shape) to (B, classes).
    """

    kind: Literal["custom"] = "custom"
    factory: str = Field(pattern=r"^\w+(\.\w+)*:\w+$")
    arguments: Mapping[str, Any] = Field(default={})

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Module:
        """Import the factory and call it."""
        module_name, function = self.factory.split(":")
        try:
            factory = getattr(importlib.import_module(module_name), function)
        except (ImportError, AttributeError) as error:
            raise UserError(
                f"network.factory = {self.factory!r} cannot be imported ({error}): give "
                "package.module:function of a module on PYTHONPATH or in the current directory"
            ) from error
        try:
            inspect.signature(factory).bind(**self.arguments)
        except TypeError as error:
            raise UserError(
                f"network.factory = {self.factory!r} does not take network.arguments = "
                f"{self.arguments} ({error}): give it the arguments that it has"
            ) from error
        return factory(**self.arguments)


NetworkSettings = Annotated[
    MLPSettings | ResNetSettings | CustomSettings, Field(discriminator="kind")
]


def build_network(settings: NetworkSettings, input_shape: tuple[int, ...], classes: int, seed: int):
    """Build the network with weights that depend on `seed` alone; the global generator is kept."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settings.build(input_shape, classes)
