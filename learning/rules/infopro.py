"""Information propagation (Wang et al. 2021, arXiv 2101.10832)."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from learning.bounds import Factor, Rate, Width
from learning.errors import UserError
from learning.objectives.base import Objective
from learning.objectives.heads import HeadSettings, make_head
from learning.objectives.reconstruction import DenseDecoder, ImageDecoder, InformedClassifier
from learning.rules.base import Rule, Site
from learning.settings import Settings

Ends = tuple[Rate, Rate]


class DecoderSettings(Settings):
    """What reconstructs the network's input from a block's output."""

    channels: Width = Field(default=12, description="between its convolutions; images")
    width: Width = Field(default=128, description="of its hidden layer; vectors and tokens")


class InfoPro(Rule):
    """Local learning that keeps what the input was: each block also reconstructs it.

    The weights go linearly from the first number at block 1 to the second at block K-1.
    """

    needs_image: ClassVar[bool] = True

    kind: Literal["infopro"] = "infopro"
    lambda1: Ends = Field(default=(0.5, 0.05), description="weight of the reconstruction")
    lambda2: Ends = Field(default=(0.5, 1.0), description="weight of the classification")
    contrast: Literal["ce", "supcon"] = Field(
        default="ce", description="the second term: cross-entropy, or supervised contrast"
    )
    temperature: Factor = Field(default=0.07, description="of the supervised contrast")
    features: Width = Field(default=128, description="that the supervised contrast compares")
    decoder: DecoderSettings = DecoderSettings()
    head: HeadSettings = HeadSettings()

    def weights(self, index: int, last: int) -> tuple[float, float]:
        """The weights of reconstruction and classification in block `index` of `last`."""
        way = (index - 1) / (last - 2) if last > 2 else 0.0
        first, second = ((1 - way) * a + way * b for a, b in (self.lambda1, self.lambda2))
        return first, second

    @property
    def batch_coupled(self) -> bool:
        return self.contrast == "supcon"

    def objective(self, site: Site) -> Objective | None:
        if site.target_shape and self.contrast == "supcon":
            raise UserError(
                "rule.contrast = supcon compares samples that have one label each, not one a "
                "token: use rule.contrast = ce"
            )
        head = make_head(self.head, site.shape, site.classes, site.target_shape)
        weights = self.weights(site.index, site.last)
        decoder = None
        if weights[0] and len(site.shape) == len(site.input_shape) == 3:
            decoder = ImageDecoder(site.shape[0], site.input_shape, self.decoder.channels)
        elif weights[0]:
            decoder = DenseDecoder(site.shape, site.input_shape, self.decoder.width)
        projection = None
        if self.contrast == "supcon":
            projection = make_head(self.head, site.shape, self.features)
        return InformedClassifier(
            head, decoder, weights, projection=projection, temperature=self.temperature
        )
