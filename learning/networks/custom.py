"""The user's own network, by import path."""

from __future__ import annotations

import importlib
import inspect
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field
from torch import nn

from learning.errors import UserError, named, one_line, shown
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
        except Exception as error:  # a module may raise anything
            raise UserError(
                f"network.factory = {shown(self.factory)} cannot be imported ({_said(error)}): "
                "give package.module:function of a module on PYTHONPATH or in the current directory"
            ) from error
        try:
            inspect.signature(factory).bind(**self.arguments)
        except (TypeError, ValueError) as error:  # no function, or one that does not tell
            raise UserError(
                f"network.factory = {shown(self.factory)} does not take network.arguments = "
                f"{shown(dict(self.arguments))} ({_said(error)}): give it the arguments that it has"
            ) from error
        try:
            return factory(**self.arguments)
        except UserError:
            raise
        except Exception as error:  # and so may a function
            raise UserError(
                f"network.factory = {shown(self.factory)} fails ({_said(error)}, "
                f"{_place(error)}): mend it, or change network.arguments"
            ) from error


def _said(error: Exception) -> str:
    return one_line(f"{type(error).__name__}: {error}", 120)


def _place(error: Exception) -> str:
    """Where an error was raised: the file and the line."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{named(Path(last.filename).name)} line {last.lineno}"
