"""Which pydantic models the settings under a key may be: a section can be of several kinds."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The settings models in an annotation such as `Annotated[A | B, ...] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, Annotated):
        return [m for a in typing.get_args(annotation) for m in models_in(a)]
    return []


def written_keys(
    location: Sequence[int | str], model: type[BaseModel], *, keep_last: bool
) -> list[str]:
    """The dotted key of an error: pydantic also names the members of unions, which nobody wrote."""
    keys: list[str] = []
    models: list[type[BaseModel]] = [model]
    for i, part in enumerate(location):
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        if isinstance(part, int) or fields or (keep_last and i == len(location) - 1):
            keys.append(str(part))
        if fields:
            models = [m for f in fields for m in models_in(f.annotation)]
    return keys


def models_at(path: Sequence[str], model: type[BaseModel]) -> list[type[BaseModel]]:
    """The settings models that a section below `model` may be an instance of."""
    models = [model]
    for name in path:
        fields = [m.model_fields[name] for m in models if name in m.model_fields]
        models = list(dict.fromkeys(m for f in fields for m in models_in(f.annotation)))
    return models
