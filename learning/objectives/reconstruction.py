"""Reconstruction: a block's output must still tell what the network's input was."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.errors import UserError
from learning.objectives.base import Assessment, Objective, Told, classification_loss, wide


class ImageDecoder(nn.Module):
    """Bilinear to the input's size, 3x3 convolution, batch norm, ReLU, 3x3 convolution.

    (B, C, H, W) to (B, *input_shape); linear at its end, because inputs are real numbers.
    """

    def __init__(self, channels: int, input_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.size = tuple(input_shape[1:])
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, input_shape[0], 3, padding=1),
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(F.interpolate(h, self.size, mode="bilinear", align_corners=True))


class DenseDecoder(nn.Module):
    """Linear, ReLU, linear, for vectors and tokens: (B, ...) to (B, *input_shape)."""

    def __init__(self, shape: tuple[int, ...], input_shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.input_shape = input_shape
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.Linear(math.prod(shape), width),
            nn.ReLU(),
            nn.Linear(width, math.prod(input_shape)),
        )

    def forward(self, h: Tensor) -> Tensor:
        return self.layers(h).unflatten(1, self.input_shape)


def supervised_contrast(features: Tensor, y: Tensor, temperature: float) -> Tensor:
    """How much likelier than others those of the same label are, from each sample's view.

    SupCon (Khosla et al. 2020, arXiv 2004.11362), summed over samples; one that is alone with its
    label counts 0. Shapes (b, D) and (b,) to ().
    """
    unit = F.normalize(features, dim=1)
    alone = torch.eye(len(y), dtype=torch.bool, device=y.device)
    others = (unit @ unit.T / temperature).masked_fill(alone, float("-inf"))
    # The sample itself has no share, and log(0) would be infinite where it is masked below.
    logs = others.log_softmax(1).masked_fill(alone, 0.0)
    same = ((y[:, None] == y) & ~alone).to(logs.dtype)
    return -((logs * same).sum(1) / same.sum(1).clamp_min(1)).sum()


class InformedClassifier(Objective):
    """Squared error of the reconstructed input plus cross-entropy of a head, both weighted.

    InfoPro (Wang et al. 2021, arXiv 2101.10832), whose upper bound on the loss of information has
    these two terms. The paper's reconstruction is a cross-entropy, of inputs within [0, 1]; inputs
    here are normalised real numbers, so it is the mean squared error over a sample's numbers, the
    likelihood of a Gaussian up to constants (derived).

    With a `projection` the contrast of its features takes the place of the cross-entropy. Then the
    head only watches: it learns, but nothing of it reaches the block.
    """

    def __init__(
        self,
        head: nn.Module,
        decoder: nn.Module | None,
        weights: tuple[float, float],
        *,
        projection: nn.Module | None = None,
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        self.head, self.decoder, self.projection = head, decoder, projection
        self.of_input, self.of_label = weights
        self.temperature = temperature

    def forward(self, h: Tensor, told: Told) -> Assessment:
        scores = wide(self.head(h if self.projection is None else h.detach()))
        loss = classification_loss(scores, told.y)
        if self.projection is None:
            loss = self.of_label * loss
        else:
            features = wide(self.projection(h))
            with torch.autocast(h.device.type, enabled=False):
                contrast = supervised_contrast(features, told.y, self.temperature)
            # The head's gradient without its value: the loss is what the block learns from.
            loss = self.of_label * contrast + (loss - loss.detach())
        if self.decoder is not None:
            assert told.image is not None
            if not told.image.is_floating_point():
                raise UserError(
                    "rule.kind = infopro reconstructs inputs that are numbers, not tokens: use "
                    "rule.kind = local or solo"
                )
            error = wide(self.decoder(h)) - told.image.to(h.device)
            loss = loss + self.of_input * error.square().flatten(1).mean(1).sum()
        return Assessment(loss, scores)
