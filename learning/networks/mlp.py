"""Multilayer perceptrons."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import Tensor, nn

from learning.bounds import Share, Widths
from learning.networks.common import ACTIVATIONS, Activation
from learning.settings import Settings


class MLPSettings(Settings):
    """A multilayer perceptron: one unit a hidden layer, and the linear head."""

    kind: Literal["mlp"] = "mlp"
    widths: Widths = (256, 256, 256)
    activation: Activation = "relu"
    normalization: Literal["none", "batch", "layer"] = "batch"
    dropout: Share = 0.0

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
