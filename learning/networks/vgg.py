"""VGG8b, the convolutional network of the papers on local learning."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from pydantic import Field
from torch import Tensor, nn

from learning.bounds import Share, Size
from learning.networks.common import ACTIVATIONS, Activation, check_images
from learning.settings import Settings

# Channels of each convolution, and whether a pooling follows (Nøkland & Eidnes 2019).
_CONVOLUTIONS = (
    (128, False),
    (256, True),
    (256, False),
    (512, True),
    (512, True),
    (512, True),
)
_DENSE = 1024


class VGG8bSettings(Settings):
    """VGG8b (Nøkland & Eidnes 2019): six convolutions, one hidden dense layer and the head.

    A pooling halves the image; where the image is one pixel high or wide already, it is left out.
    With `pooling="first"` it begins the next unit, so that losses between units read maps that are
    not pooled yet, as in the authors' code; messages between blocks are then four times as large.
    """

    kind: Literal["vgg8b"] = "vgg8b"
    width: Size = Field(default=1.0, description="factor on all channels and features")
    activation: Activation = "relu"
    dropout: Share = 0.0
    pooling: Literal["first", "last"] = Field(
        default="last", description="whether poolings end a unit or begin the next one"
    )

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build for images of `input_shape` = (channels, height, width)."""
        check_images(self.kind, input_shape)
        size, height, width = input_shape
        units: OrderedDict[str, nn.Module] = OrderedDict()
        pooled = False  # between the unit before and this one
        for i, (channels, pool) in enumerate(_CONVOLUTIONS, start=1):
            channels, pool = self._scaled(channels), pool and min(height, width) > 1
            units[f"conv{i}"] = _ConvolutionLayer(size, channels, self, before=pooled, after=pool)
            size, pooled = channels, pool
            if pool:
                height, width = height // 2, width // 2
        dense = self._scaled(_DENSE)
        units["dense"] = _DenseLayer(size * height * width, dense, self, before=pooled)
        units["head"] = nn.Linear(dense, classes)
        return nn.Sequential(units)

    def _scaled(self, size: int) -> int:
        return max(1, round(size * self.width))


def _pooling(here: bool) -> nn.Module:
    return nn.MaxPool2d(2) if here else nn.Identity()


class _ConvolutionLayer(nn.Module):
    """Convolution, batch norm, activation, pooling, dropout: (B, C, H, W) to (B, width, H', W').

    `before` and `after` say whether there is a pooling: the settings say whose unit it is in.
    """

    def __init__(
        self, size: int, width: int, settings: VGG8bSettings, *, before: bool, after: bool
    ) -> None:
        super().__init__()
        self.before = _pooling(before and settings.pooling == "first")
        self.conv = nn.Conv2d(size, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.pool = _pooling(after and settings.pooling == "last")
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.pool(self.activation(self.norm(self.conv(self.before(x))))))


class _DenseLayer(nn.Module):
    """Linear, batch norm, activation, dropout: (B, C, H, W) to (B, width)."""

    def __init__(self, size: int, width: int, settings: VGG8bSettings, *, before: bool) -> None:
        super().__init__()
        self.before = _pooling(before and settings.pooling == "first")
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(size, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.activation = ACTIVATIONS[settings.activation]()
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.activation(self.norm(self.linear(self.flatten(self.before(x))))))
