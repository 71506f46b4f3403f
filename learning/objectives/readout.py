"""From a block's activation to the natural parameters of its latent: pool, normalise, arrange."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from learning.bounds import Factor, Pixels, Width
from learning.errors import UserError
from learning.objectives.heads import conv_features
from learning.objectives.latents import EPS, LatentKind, LearnedGaussian, make_family
from learning.settings import Settings


class LatentSettings(Settings):
    """The latent of a block: its family and how it is read out of the activation."""

    kind: LatentKind = "gaussian"
    states: Width = Field(default=4, ge=2, description="states a group, categorical only")
    grid: Pixels = Field(
        default=2, description="images are pooled to grid x grid before the readout"
    )
    convolution: Width | None = Field(
        default=None, description="width of a convolution of its own that reads images first"
    )
    normalization: Literal["batch", "none"] = "batch"
    temperature: Literal["auto"] | Factor = Field(
        default="auto", description="factor on the summed evidence; auto is 1 / sqrt(units)"
    )


CONVOLUTION_INPUT = 16  # images are pooled to at most this before the readout's convolution


class Readout(nn.Module):
    """Activation (B, C, H, W), (B, T, D) or (B, D) to natural parameters (B, U, P), in float32+.

    Tokens are pooled to their mean or, `per_token`, are samples of the latent: (B * T, U, P).
    """

    def __init__(
        self, settings: LatentSettings, shape: tuple[int, ...], *, per_token: bool = False
    ) -> None:
        super().__init__()
        self.family = make_family(settings.kind, settings.states)
        self.grid = (
            (min(settings.grid, shape[1]), min(settings.grid, shape[2]))
            if len(shape) == 3
            else None
        )
        if len(shape) not in (1, 2, 3):
            raise UserError(
                "this rule reads activations of shape (features,), (tokens, features) or "
                f"(channels, height, width), not {shape}: cut the network at another unit"
            )
        if per_token and len(shape) != 2:
            raise UserError(
                "with one label a token this rule reads activations of shape (tokens, features), "
                f"not {shape}: cut the network at another unit"
            )
        self.tokens, self.per_token = len(shape) == 2, per_token
        channels = shape[1] if self.tokens else shape[0]
        self.convolution: nn.Module = nn.Identity()
        if settings.convolution is not None and self.grid is not None:
            channels = settings.convolution
            self.convolution = conv_features(shape, channels, depth=1, pool=CONVOLUTION_INPUT)
        self.features = channels * (math.prod(self.grid) if self.grid else 1)
        self.norm = (
            nn.BatchNorm1d(self.features, affine=False)
            if settings.normalization == "batch"
            else nn.Identity()
        )
        per_unit = settings.states if settings.kind == "categorical" else 1
        if self.features % per_unit:
            raise UserError(
                f"rule.latent.states = {per_unit} does not divide the {self.features} features of "
                "a block's readout: use a divisor"
            )
        self.units = self.features // per_unit
        self.temperature = (
            1 / math.sqrt(self.units) if settings.temperature == "auto" else settings.temperature
        )
        if settings.kind == "gaussian-learned":
            self.scale = nn.Parameter(torch.zeros(self.features))
            self.offset = nn.Parameter(torch.zeros(self.features))

    def pool(self, h: Tensor) -> Tensor:
        """(B, ...) to (B, features), or (B * T, features), in float32 at least."""
        h = self.convolution(h)
        h = h if h.dtype == torch.float64 else h.float()
        if self.tokens:
            return h.flatten(0, 1) if self.per_token else h.mean(1)
        if self.grid is not None:
            h = F.adaptive_avg_pool2d(h, self.grid)
        return h.flatten(1)

    def forward(self, h: Tensor) -> Tensor:
        """Natural parameters of alpha: (B, U, P), or (B * T, U, P)."""
        pooled = self.pool(h)
        with torch.autocast(h.device.type, enabled=False):
            return self._arrange(self.norm(pooled))

    def _arrange(self, n: Tensor) -> Tensor:
        if isinstance(self.family, LearnedGaussian):
            half_precision = F.softplus(self.scale * n + self.offset) + EPS
            return torch.stack((2 * half_precision * n, -half_precision), dim=-1)
        return n.unflatten(1, (self.units, -1))

    @torch.no_grad()
    def posterior(self, h: Tensor, b: Tensor) -> Tensor:
        """The activation moved to the posterior (E1): h (B, ...), b (B, U, P) to (B, ...).

        With one label a token b is (B * T, U, P).

        The shift is made in the readout's coordinates, scaled back by its standard deviation and
        spread evenly over the cells that each readout pools. Derived in docs/rules/bll.md.
        """
        n, std = self._normalised(self.pool(h))
        shift = self.family.shift(self._arrange(n), b)
        if isinstance(self.family, LearnedGaussian):
            shift = shift[..., :1]
        moved = shift.flatten(1) * std
        if self.grid is not None:
            moved = F.interpolate(
                moved.unflatten(1, (h.shape[1], *self.grid)), size=h.shape[2:], mode="nearest"
            )
        if self.tokens:
            moved = moved.view_as(h) if self.per_token else moved[:, None]
        return h + moved.to(h.dtype)

    def _normalised(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise by this batch's statistics and leave the running ones alone."""
        if not isinstance(self.norm, nn.BatchNorm1d):
            return pooled, torch.ones_like(pooled[0])
        std = (pooled.var(0, unbiased=False) + self.norm.eps).sqrt()
        return (pooled - pooled.mean(0)) / std, std
