"""Checks of a user's modules: what another process, an optimizer or a file could not do with them.

They look and run nothing; what only shows when a step is tried is `orchestrator.rehearsal`'s.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from learning.errors import UserError
from learning.policies.gradient_hooks import hooks_of
from learning.units import Unit

Named = tuple[str, Tensor]


def check_modules(units: Sequence[Unit], *, fused: bool = False) -> None:
    """Check the modules of a network before anything is made of them.

    Args:
        units: of the whole network.
        fused: whether updates are fused into the backward pass.

    Raises:
        UserError: naming the unit or tensor, and what to do.
    """
    for unit in units:
        _check_kind(unit)
        for name, tensor, is_parameter in _tensors(unit):
            _check_tensor(name, tensor, is_parameter, fused)
    _check_memory(units)


def _check_kind(unit: Unit) -> None:
    where = f"unit {unit.name!r}"
    if unit.name.split(".")[0] == "auxiliary":
        raise UserError(
            f"{where} is named like auxiliary networks, whose tensors lie beside its own in a "
            "checkpoint: give it another name"
        )
    for module in unit.module.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(
                f"{where} is compiled by torch.jit, which no actor can be sent: give the module "
                "that it was made from"
            )
        if _is_compiled(module):
            raise UserError(
                f"{where} is compiled by torch.compile, which is lost on the way to an actor: give "
                "the module itself and set precision.compile = inductor"
            )


def _is_compiled(module: nn.Module) -> bool:
    # torch's own class of compiled modules takes a second to import.
    compiled = "_orig_mod" in module._modules and type(module).__name__ == "OptimizedModule"
    return compiled or getattr(module, "_compiled_call_impl", None) is not None


def _check_tensor(name: str, tensor: Tensor, is_parameter: bool, fused: bool) -> None:
    if torch.nn.parameter.is_lazy(tensor):
        return  # planning says what to do
    if tensor.is_inference():
        raise UserError(
            f"{name} was made under torch.inference_mode and cannot be trained: make the network "
            "outside of it"
        )
    if any(size > 1 and step == 0 for size, step in _strides(tensor)):
        raise UserError(
            f"{name} is an expanded tensor, several numbers in one place, which nothing can be "
            "loaded into: call clone() on it"
        )
    before, after = hooks_of(tensor)
    if not is_parameter and (before or after or tensor.requires_grad):
        raise UserError(
            f"buffer {name} has a gradient, which no optimizer takes: make it a parameter, or use "
            "requires_grad=False"
        )
    if fused and (before or after):
        raise UserError(
            f"{name} has a hook, which sees the gradient of a batch, and update.fused = true never "
            "has that: use update.fused = false"
        )


def _check_memory(units: Sequence[Unit]) -> None:
    """Two tensors that share memory would part on the way to an actor, and in a checkpoint."""
    by_storage: dict[int, dict[int, Named]] = defaultdict(dict)
    for unit in units:
        for name, tensor, _ in _tensors(unit):
            lazy = torch.nn.parameter.is_lazy(tensor)
            if not lazy and tensor.layout == torch.strided and tensor.numel():
                by_storage[tensor.untyped_storage().data_ptr()].setdefault(
                    id(tensor), (name, tensor)
                )
    for sharing in by_storage.values():
        tensors = sorted(sharing.values(), key=lambda named: named[1].storage_offset())
        for i, (name, tensor) in enumerate(tensors):
            for other_name, other in tensors[i + 1 :]:
                if _overlap(tensor, other):
                    raise UserError(
                        f"{other_name} and {name} are different tensors in one memory, which would "
                        "part in actors and checkpoints: register the same parameter twice, or "
                        "clone() one"
                    )


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of a storage have a number in common; neither is expanded."""
    ends = [
        (t.storage_offset(), t.storage_offset() + sum((n - 1) * s for n, s in _strides(t)))
        for t in (one, other)
    ]
    if ends[0][1] < ends[1][0] or ends[1][1] < ends[0][0] or one.dtype != other.dtype:
        return one.dtype != other.dtype  # offsets of different types do not compare
    if one.is_contiguous() and other.is_contiguous():
        return True
    last = max(ends[0][1], ends[1][1])
    places = torch.zeros(last + 1, dtype=torch.uint8)
    for t in (one, other):
        places.as_strided(t.shape, t.stride(), t.storage_offset()).add_(1)
    return bool((places > 1).any())


def _strides(tensor: Tensor) -> Iterator[tuple[int, int]]:
    strided = tensor.layout == torch.strided
    return zip(tensor.shape, tensor.stride() if strided else tensor.shape, strict=True)


def _tensors(unit: Unit) -> Iterator[tuple[str, Tensor, bool]]:
    for name, parameter in unit.module.named_parameters():
        yield f"{unit.name}.{name}", parameter, True
    for name, buffer in unit.module.named_buffers():
        yield f"{unit.name}.{name}", buffer, False
