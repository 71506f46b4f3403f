"""Networks as lists of units: flatten an `nn.Sequential`, cut it into blocks, check ownership."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor, nn

from learning.errors import UserError
from learning.module_state import load_module_state, module_state


@dataclass(frozen=True)
class Unit:
    """An indivisible layer or residual block, with its name in the original module.

    `position` is its place among the network's units, from 0.
    """

    name: str
    module: nn.Module
    position: int = 0


def units_of(model: nn.Module) -> list[Unit]:
    """List the units of `model`, an `nn.Sequential`; nested `nn.Sequential`s are opened too.

    Raises:
        UserError: when `model` is not an `nn.Sequential` or has no units.
    """
    more = _more_than_its_children(model) if isinstance(model, nn.Sequential) else None
    if more:
        raise UserError(
            f"the network itself has {more}, which blocks would run without: move that to one of "
            "its layers"
        )
    if not _is_plain_sequential(model):
        raise UserError(
            f"a network must be an nn.Sequential, not {_kind(model)}: "
            "express it as an nn.Sequential of its layers"
        )
    _check_no_circle(model)
    units = [replace(unit, position=i) for i, unit in enumerate(_flatten(model, ""))]
    if not units:
        raise UserError("the network has no units: add at least one layer")
    return units


def _kind(model: object) -> str:
    return f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__


def _check_no_circle(model: nn.Module) -> None:
    """Refuse a module that is inside itself: its forward pass would never end."""
    above, whole = set[nn.Module](), set[nn.Module]()

    def enter(module: nn.Module) -> None:
        if module in above:
            raise UserError(
                f"the network has a {type(module).__name__} that is inside itself: take it out "
                "there"
            )
        if module not in whole:
            above.add(module)
            for child in module.children():
                enter(child)
            above.remove(module)
            whole.add(module)

    enter(model)


def _is_plain_sequential(module: nn.Module) -> bool:
    # A subclass with its own forward may do more than chain its children.
    return (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and type(module).__call__ is nn.Module.__call__
        and not _more_than_its_children(module)
    )


def _more_than_its_children(module: nn.Module) -> str | None:
    """What a module has of its own and would lose if it were opened."""
    hooks = [
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    ]
    if any(getattr(module, name, None) for name in hooks):
        return "hooks"
    if module._parameters or module._buffers:
        return "parameters or buffers of its own"
    if type(module).get_extra_state is not nn.Module.get_extra_state:
        return "extra state of its own"
    if getattr(module, "_compiled_call_impl", None) is not None:
        return "a compiled call (module.compile())"
    return None


def _flatten(module: nn.Module, prefix: str) -> Iterator[Unit]:
    for name, child in module._modules.items():
        if child is None:
            continue
        if _is_plain_sequential(child):
            yield from _flatten(child, f"{prefix}{name}.")
        else:
            yield Unit(prefix + name, child)


def copied(units: Sequence[Unit]) -> list[Unit]:
    """Deep copies of units, whose parameters keep the attributes that users set on them."""
    copies = copy.deepcopy(list(units))
    for unit, other in zip(units, copies, strict=True):
        pairs = zip(unit.module.parameters(), other.module.parameters(), strict=True)
        for parameter, twin in pairs:
            vars(twin).update(vars(parameter))
    return copies


def split(units: Sequence[Unit], at: Sequence[str]) -> list[list[Unit]]:
    """Cut `units` before each name in `at` (a unit's name or the prefix of a group of units).

    Returns:
        `len(at) + 1` runs of consecutive units.

    Raises:
        UserError: for a name that does not exist, or cuts that leave a block empty.
    """
    starts = []
    for name in at:
        matches = [
            i for i, u in enumerate(units) if u.name == name or u.name.startswith(name + ".")
        ]
        if not matches:
            known = [u.name for u in units] + sorted({u.name.split(".")[0] for u in units})
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise UserError(
                f"blocks.at names {name!r}, which is not a unit of this network: {hint}"
            )
        starts.append(matches[0])
    if starts != sorted(set(starts)) or 0 in starts:
        raise UserError(
            f"blocks.at = {list(at)} does not cut the network into non-empty blocks in order: "
            "name later units, each once, in the order of the network"
        )
    edges = [0, *starts, len(units)]
    blocks = [list(units[a:b]) for a, b in pairwise(edges)]
    check_ownership(blocks)
    return blocks


def check_ownership(blocks: Sequence[Sequence[Unit]]) -> None:
    """Check that every parameter and buffer belongs to exactly one block.

    Raises:
        UserError: naming the tensor and both blocks.
    """
    owner: dict[int, tuple[int, str, Unit]] = {}
    units = [unit for block in blocks for unit in block]
    for k, block in enumerate(blocks, start=1):
        for unit in block:
            for name, tensor in _tensors(unit):
                first, first_name, first_unit = owner.setdefault(id(tensor), (k, name, unit))
                if first == k:
                    continue
                fix = "move the boundary so that one block owns both, or do not share it"
                if first_unit is units[0] and unit is units[-1]:  # tied embeddings
                    fix = (
                        "no boundary keeps the first and the last unit together, so use "
                        "blocks.count = 1, or do not share it (gpt: network.tied = false)"
                    )
                raise UserError(
                    f"{name} in block {k} is the same tensor as {first_name} in block {first}: "
                    f"{fix}"
                )


def _tensors(unit: Unit) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in (*unit.module.named_parameters(), *unit.module.named_buffers()):
        yield f"{unit.name}.{name}", tensor


class Chain(nn.Module):
    """The units of one block, run in order, with state keyed by names in the original module."""

    def __init__(self, units: Sequence[Unit]) -> None:
        super().__init__()
        self.unit_names = [u.name for u in units]
        self.units = nn.ModuleList([u.module for u in units])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to (B, ...)."""
        for unit in self.units:
            x = unit(x)
        return x

    def original_name(self, name: str) -> str:
        """Turn `units.<i>.<rest>` into `<unit name>.<rest>`."""
        _, index, *rest = name.split(".", 2)
        return ".".join([self.unit_names[int(index)], *rest])

    def original_state(self) -> dict[str, Tensor]:
        """Parameters and persistent buffers under their names in the original module."""
        state = self.whole_state()
        return {n.removeprefix("model."): t for n, t in state.items() if n.startswith("model.")}

    def load_original_state(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of this block from a (possibly larger) state of the original module."""
        self.load_whole_state({f"model.{name}": tensor for name, tensor in state.items()})

    def whole_state(self) -> dict[str, Tensor]:
        """All state of the units under names of the original module: see `module_state`."""
        return module_state(self, self.original_name)

    def load_whole_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `whole_state` gave, or more; of what it may lack, things stay as they are."""
        load_module_state(self, state, self.original_name)
