"""A small vision transformer: an image is a sequence of patches.

Shapes: B batch, T tokens (patches, and the class token if any), C width.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from learning.bounds import Depth, Pixels, Share, Size, Width
from learning.errors import UserError
from learning.networks.attention import TransformerBlock, check_heads, initialise, learned_positions
from learning.networks.common import check_images
from learning.settings import Settings


class ViTSettings(Settings):
    """A vision transformer (Dosovitskiy et al. 2021): units `embed`, `block1`, ..., `head`.

    LayerNorm before attention and before the feed-forward layer, GELU, learned positions.
    """

    kind: Literal["vit"] = "vit"
    patch: Pixels = Field(default=4, description="pixels on a side; divides height and width")
    width: Width = 192
    depth: Depth = Field(default=6, description="number of transformer blocks")
    heads: Depth = Field(default=3, description="divides the width")
    mlp_ratio: Size = Field(default=4.0, description="hidden features, in widths")
    pool: Literal["mean", "token"] = Field(
        default="mean", description="what the head reads: the mean of all tokens or a class token"
    )
    dropout: Share = 0.0

    def build(self, input_shape: tuple[int, ...], classes: int) -> nn.Sequential:
        """Build for images of `input_shape` = (channels, height, width)."""
        check_images(self.kind, input_shape)
        channels, height, width = input_shape
        if height % self.patch or width % self.patch:
            raise UserError(
                f"network.patch = {self.patch} does not divide images of {height}x{width} pixels: "
                "use a divisor of both"
            )
        check_heads(self.width, self.heads)
        patches = (height // self.patch) * (width // self.patch)
        units: OrderedDict[str, nn.Module] = OrderedDict()
        units["embed"] = _PatchEmbedding(self, channels, patches)
        for i in range(1, self.depth + 1):
            units[f"block{i}"] = TransformerBlock(
                self.width,
                self.heads,
                hidden=max(1, round(self.mlp_ratio * self.width)),
                norm=nn.LayerNorm,
                bias=True,
                dropout=self.dropout,
            )
        units["head"] = _PooledHead(self, classes)
        model = nn.Sequential(units)
        initialise(model, self.depth)
        return model


class _PatchEmbedding(nn.Module):
    """Patches, class token if any, positions, dropout: (B, channels, height, width) to (B, T, C).

    The class token is the first one.
    """

    def __init__(self, settings: ViTSettings, channels: int, patches: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, settings.width, settings.patch, settings.patch)
        has_token = settings.pool == "token"
        # It gets a position like all others, whose draw breaks the symmetry: 0 is enough here.
        self.token = nn.Parameter(torch.zeros(1, settings.width)) if has_token else None
        self.positions = learned_positions(patches + has_token, settings.width)
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x_BTC = self.conv(x).flatten(2).transpose(1, 2)
        if self.token is not None:
            x_BTC = torch.cat((self.token.expand(len(x), -1, -1), x_BTC), dim=1)
        return self.dropout(x_BTC + self.positions)


class _PooledHead(nn.Module):
    """Final norm, mean or class token, linear layer: (B, T, C) to scores (B, classes)."""

    def __init__(self, settings: ViTSettings, classes: int) -> None:
        super().__init__()
        self.pool = settings.pool
        self.norm = nn.LayerNorm(settings.width)
        self.linear = nn.Linear(settings.width, classes)

    def forward(self, x_BTC: Tensor) -> Tensor:
        x_BTC = self.norm(x_BTC)
        return self.linear(x_BTC[:, 0] if self.pool == "token" else x_BTC.mean(dim=1))
