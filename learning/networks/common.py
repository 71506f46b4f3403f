"""What several networks share: names of activations, the check of image shapes."""

from __future__ import annotations

from typing import Literal

from torch import nn

from learning.errors import UserError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}
Activation = Literal["relu", "gelu", "tanh"]


def check_images(kind: str, input_shape: tuple[int, ...]) -> None:
    """Check that `input_shape` (without batch) is (channels, height, width).

    Raises:
        UserError: for any other number of dimensions.
    """
    if len(input_shape) != 3:
        raise UserError(
            f"network.kind = {kind} needs images (channels, height, width), not {input_shape}: "
            "use network.kind = mlp"
        )
