"""Reconstruction: a block's output must still tell what the network's input was."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from learning.errors import UserError
from learning.objectives import Assessment, Objective, Told, classification_loss, wide


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


class InformedClassifier(Objective):
    """Squared error of the reconstructed input plus cross-entropy of a head, both weighted.

    InfoPro (Wang et al. 2021, arXiv 2101.10832), whose upper bound on the loss of information has
    these two terms. The paper's reconstruction is a cross-entropy, of inputs within [0, 1]; inputs
    here are normalised real numbers, so it is the mean squared error over a sample's numbers, the
    likelihood of a Gaussian up to constants (derived).
    """

    def __init__(
        self, head: nn.Module, decoder: nn.Module | None, weights: tuple[float, float]
    ) -> None:
        super().__init__()
        self.head, self.decoder = head, decoder
        self.of_input, self.of_label = weights

    def forward(self, h: Tensor, told: Told) -> Assessment:
        scores = wide(self.head(h))
        loss = self.of_label * classification_loss(scores, told.y)
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
