"""Later units as patterns: copies of their architecture with weights of their own, glued in order.

For auxiliary networks that are made of the network's own kinds of layers.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import nn

from learning.errors import UserError
from learning.units import Unit

Shape = tuple[int, ...]


def fresh(unit: Unit) -> nn.Module:
    """A copy of the unit whose weights are drawn anew and which learns as a whole.

    Raises:
        UserError: where a parameter of it cannot be drawn anew.
    """
    module = copy.deepcopy(unit.module)
    # Parts before what they are parts of, which may draw them in a way of its own.
    for name, part in reversed(list(module.named_modules())):
        reset = getattr(part, "reset_parameters", getattr(part, "_reset_parameters", None))
        own = [n for n, _ in part.named_parameters(recurse=False)]
        if callable(reset):
            reset()
        elif own:
            where = ".".join(filter(None, (unit.name, name)))
            raise UserError(
                f"unit {where!r} has parameters ({', '.join(own)}) but no reset_parameters() to "
                "draw them anew for an auxiliary network of its architecture: add that method, or "
                "use rule.kind = local"
            )
    return module.requires_grad_(True).train()


@torch.no_grad()
def output_shape(module: nn.Module, shape: Shape) -> Shape:
    """What the module makes of an activation of `shape` (both without batch).

    Raises:
        RuntimeError: what the module raises when it does not accept that shape.
    """
    trial = copy.deepcopy(module).float().cpu().eval()
    return tuple(trial(torch.zeros(1, *shape)).shape[1:])


def input_shapes(units: Sequence[Unit], shape: Shape) -> list[Shape]:
    """The shapes that each of `units` reads when the first one reads `shape`."""
    shapes = [shape]
    for unit in units[:-1]:
        shapes.append(output_shape(unit.module, shapes[-1]))
    return shapes


def glued(picked: Sequence[Unit], expected: Sequence[Shape], shape: Shape) -> nn.Sequential:
    """Fresh copies of units one after the other, with adapters where shapes do not fit.

    Args:
        picked: the units to copy.
        expected: the shape that each of them reads in the network.
        shape: of what the first copy reads.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i, (unit, wanted) in enumerate(zip(picked, expected, strict=True), start=1):
        module = fresh(unit)
        adapters = _adapters(unit, shape, wanted)
        if adapters:
            layers[f"adapter{i}"] = adapter = nn.Sequential(*adapters)
            shape = output_shape(adapter, shape)
        layers[f"unit{i}"] = module
        shape = output_shape(module, shape)
    return nn.Sequential(layers)


def _adapters(unit: Unit, shape: Shape, wanted: Shape) -> list[nn.Module]:
    """What leads from `shape` to something that the unit, made for `wanted`, accepts.

    Where units that halve images were left out, an image that is twice as large as the unit's own
    or more is halved once, as in the authors' code: by a pooling, unless the unit halves it itself.
    The number of features is mapped by a 1x1 convolution or a linear layer. An image of yet
    another size stays as it is, unless the unit reads images of one size only.
    """
    if len(shape) == 3 and len(wanted) == 1:
        between = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return between + _adapters(unit, shape[:1], wanted)
    if len(shape) != len(wanted):
        raise UserError(
            f"unit {unit.name!r} reads activations of shape {wanted}, which an auxiliary network "
            f"cannot make of {shape}: cut the network at another unit or lower rule.depth"
        )
    if len(wanted) != 3:
        fits = shape[-1] == wanted[-1]
        return [] if fits else [nn.Linear(shape[-1], wanted[-1], bias=False)]
    adapters: list[nn.Module] = []
    rows, columns = (2 if shape[i] >= 2 * wanted[i] else 1 for i in (1, 2))
    if max(rows, columns) == 2 and not _halves(unit, wanted):
        adapters.append(nn.AvgPool2d((rows, columns), ceil_mode=True))
        shape = output_shape(adapters[0], shape)
    if shape[0] != wanted[0]:
        adapters.append(nn.Conv2d(shape[0], wanted[0], 1, bias=False))
    try:
        output_shape(unit.module, (wanted[0], *shape[1:]))
    except RuntimeError:
        adapters.insert(0, nn.AdaptiveAvgPool2d(wanted[1:]))
    return adapters


def _halves(unit: Unit, wanted: Shape) -> bool:
    """Whether the unit makes images smaller."""
    made = output_shape(unit.module, wanted)
    return len(made) == 3 and made[1:] < wanted[1:]
