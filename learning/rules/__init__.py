"""The learning rules. To add one, write a `Rule` in a file of its own and list it in `RULES`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from learning.rules.backprop import Backprop
from learning.rules.base import Rule
from learning.rules.bll import BLL
from learning.rules.interlocking import Interlocking
from learning.rules.local import Local

RULES: tuple[type[Rule], ...] = (Backprop, Local, Interlocking, BLL)

RuleSettings = Annotated[Backprop | Local | Interlocking | BLL, Field(discriminator="kind")]

__all__ = ["BLL", "RULES", "Backprop", "Interlocking", "Local", "Rule", "RuleSettings"]
