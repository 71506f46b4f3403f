"""The user's own network, by import path."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn

from learning.errors import UserError
from learning.settings import Settings


class CustomSettings(Settings):
    """The user's own network: `factory` is `package.module:function`, called with `arguments`.

    The function returns an `nn.Sequential` that maps (B, *input_shape) to (B, classes).
    """

    kind: Literal["custom"] = "custom"
    factory: str = Field(max_length=500, pattern=r"^\w+(\.\w+)*:\w+$")
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
