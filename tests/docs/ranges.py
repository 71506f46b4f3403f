"""What a setting may be, in words, read from its type: the third column of the tables."""

from __future__ import annotations

import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

Leaf = tuple[Any, tuple[Any, ...]]
"""A type and what is said of it, such as its limits."""


def leaves(annotation: Any, said: tuple[Any, ...] = ()) -> list[Leaf]:
    """The members of a union, each with its limits; a list is a leaf of its own."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        flat = [m for one in more for m in (one.metadata if isinstance(one, FieldInfo) else [one])]
        return leaves(inner, (*said, *flat))
    if origin in (Union, types.UnionType):
        return [leaf for one in get_args(annotation) for leaf in leaves(one)]
    return [(annotation, said)]


def of_field(info: FieldInfo) -> list[Leaf]:
    """The leaves of a field; what is said of the whole is said of its only leaf, or its first."""
    (first, said), *rest = leaves(info.annotation)
    return [(first, (*said, *info.metadata)), *rest]


def limits(said: tuple[Any, ...]) -> dict[str, Any]:
    """The innermost limit of each kind: `ge`, `gt`, `le`, `lt`."""
    found: dict[str, Any] = {}
    for one in said:
        for name in ("ge", "gt", "le", "lt"):
            value = getattr(one, name, None)
            if value is not None:
                outer = found.get(name, value)
                found[name] = max(outer, value) if name.startswith("g") else min(outer, value)
    return found


def in_words(info: FieldInfo) -> str | None:
    """The whole cell of a field with numbers; None where there are none."""
    parts = [_leaf(*leaf) for leaf in of_field(info)]
    return ", or ".join(parts) if any(c.isdigit() for part in parts for c in part) else None


def _leaf(kind: Any, said: tuple[Any, ...]) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    if get_origin(kind) is tuple:
        members = [one for one in get_args(kind) if one is not Ellipsis]
        each = _leaf(*leaves(members[0])[0]).removeprefix("integer, ")
        whole = " of integers" if leaves(members[0])[0][0] is int else ""
        return f"{f'a list{whole}' if Ellipsis in get_args(kind) else 'two numbers'}, each {each}"
    if kind in (int, float):
        return ("integer, " if kind is int else "") + _range(limits(said))
    return {bool: "true or false"}.get(kind, "text")


def _range(found: dict[str, Any]) -> str:
    low = f"above {_number(found['gt'])}," if "gt" in found else _number(found["ge"])
    if "le" not in found and "lt" not in found:
        return low.rstrip(",")
    high = f"below {_number(found['lt'])}" if "lt" in found else _number(found["le"])
    return f"{low} to {high}"


def _number(value: float) -> str:
    if value == 2**64 - 1:
        return "2^64 - 1"
    if abs(value) >= 1e9 or 0 < value < 1e-3:
        return f"{value:.0e}".replace("e+", "e").replace("e-0", "e-").replace("e0", "e")
    return f"{int(value):,}" if value == int(value) else str(value)
