"""From the settings of any kind of network to the network, the same weights for the same seed."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import nn

from learning.errors import UserError
from learning.memory import building
from learning.networks.custom import CustomSettings
from learning.networks.gpt import GPTSettings
from learning.networks.mlp import MLPSettings
from learning.networks.resnet import ResNetSettings
from learning.networks.vgg import VGG8bSettings
from learning.networks.vit import ViTSettings

TOO_LARGE = "make it smaller, in width or depth, or use a machine with more memory"
NetworkSettings = Annotated[
    MLPSettings | VGG8bSettings | ResNetSettings | ViTSettings | GPTSettings | CustomSettings,
    Field(discriminator="kind"),
]


def build_network(
    settings: NetworkSettings,
    input_shape: tuple[int, ...],
    classes: int,
    seed: int,
    *,
    tokens: bool = False,
) -> nn.Module:
    """Build the network with weights that depend on `seed` alone; the global generator is kept.

    Args:
        settings: which network.
        input_shape: of one row, without batch.
        classes: number of scores, for each token if the labels are tokens.
        seed: of the weights.
        tokens: whether rows are tokens, int64 (T,), instead of numbers.

    Raises:
        UserError: when the network cannot be built for such rows.
    """
    if not isinstance(settings, CustomSettings):
        _check_input(settings.kind, input_shape, tokens)
    what = f"network.kind = {settings.kind} for {classes:,} classes"
    with building(what, TOO_LARGE), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settings.build(input_shape, classes)


def _check_input(kind: str, input_shape: tuple[int, ...], tokens: bool) -> None:
    if tokens and kind != "gpt":
        raise UserError(
            f"network.kind = {kind} reads numbers, but the rows of these data are {input_shape[0]} "
            "tokens each: use network.kind = gpt"
        )
    if kind == "gpt" and not tokens:
        raise UserError(
            f"network.kind = gpt reads tokens, not numbers of shape {input_shape}: use data.kind = "
            "text or reversal, or another network.kind"
        )
