"""Measure the units of a network: shapes, parameters, activation memory and time.

Everything runs on deep copies with a forked random generator: the user's parameters, buffers,
gradients, training modes and the global random state stay as they are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from actors.carrying import carried_here
from learning.errors import UserError, one_line
from learning.memory import check_fits
from learning.numerics import backward
from learning.units import Unit

FEW = 2
"""Rows that tell what more of them take; a batch normalisation needs two."""


@dataclass(frozen=True, kw_only=True)
class UnitSize:
    """What a unit holds and sends; the same in every run.

    Attributes:
        parameters: number of scalars in its parameters.
        output_shape: shape of its output without the batch.
        output_bytes: bytes of its output for the whole batch, in the output's dtype.
        activation_bytes: bytes kept for the backward pass for the whole batch, the unit run alone.
    """

    name: str
    parameters: int
    output_shape: tuple[int, ...]
    output_bytes: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class UnitProfile(UnitSize):
    """A unit's size and its median times for one batch, in seconds; the times vary between runs."""

    forward_seconds: float
    backward_seconds: float


def measure_units(units: Sequence[Unit], sample: Tensor) -> list[UnitSize]:
    """Measure the size of every unit without timing it; deterministic.

    `sample` (B, ...) is the first unit's input; all byte counts refer to this batch.

    Raises:
        UserError: for a unit that does not accept its input or cannot be copied.
    """
    sizes, x, kept = [], sample, 0
    with isolated(sample.device):
        for unit in units:
            module = _copy(unit, sample.device)
            kept += _check_room(unit, module, x, kept)
            size, x = _measure(unit, module, x)
            sizes.append(size)
    return sizes


def profile_units(units: Sequence[Unit], sample: Tensor, repeats: int = 3) -> list[UnitProfile]:
    """Measure size and time of every unit, run alone in train mode on its predecessor's output.

    The backward pass is the one with respect to the parameters and the input; a unit without
    anything to differentiate takes 0 seconds there.

    Args:
        sample: (B, ...) input of the first unit, on the device to profile.
        repeats: timed runs after one warm-up; the median of each time is kept.

    Raises:
        UserError: for a unit that fails or cannot be copied, or `repeats` below 1.
    """
    if repeats < 1:
        raise UserError(f"repeats = {repeats} is less than 1: use at least 1 timed run")
    profiles, x, kept = [], sample, 0
    with isolated(sample.device):
        for unit in units:
            module = _copy(unit, sample.device)
            kept += _check_room(unit, module, x, kept)
            _timed_run(unit, module, x)  # warm-up: kernel selection and allocation happen here
            times = [_timed_run(unit, module, x) for _ in range(repeats)]
            size, x = _measure(unit, module, x)
            profiles.append(
                UnitProfile(
                    **vars(size),
                    forward_seconds=statistics.median(t[0] for t in times),
                    backward_seconds=statistics.median(t[1] for t in times),
                )
            )
    return profiles


def unit_types(units: Sequence[Unit], sample: Tensor) -> list[torch.dtype]:
    """The type of each unit's output.

    Args:
        sample: (B, ...) input of the first unit.

    Raises:
        UserError: for a unit that does not accept its input or cannot be copied.
    """
    types, x = [], sample
    with isolated(sample.device), torch.no_grad():
        for unit in units:
            x = _call(unit, _copy(unit, sample.device), x.clone())
            types.append(x.dtype)
    return types


def block_activation_bytes(blocks: Sequence[Sequence[Unit]], sample: Tensor) -> list[int]:
    """Measure the bytes each block keeps for its backward pass.

    Less than the sum over its units where neighbours keep one tensor between them, such as the
    output of a ReLU that is the input of the next layer. `sample` (B, ...) is the first input.
    """
    result, x = [], sample
    with isolated(sample.device):
        for block in blocks:
            chain = [(unit, _copy(unit, sample.device)) for unit in block]
            x, saved = _forward_saving(chain, x)
            result.append(saved)
    return result


@contextmanager
def isolated(device: torch.device) -> Iterator[None]:
    """Put torch's generators back afterwards; gradients are on inside."""
    # The generators are named: by default fork_rng copies that of every GPU and warns.
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.enable_grad():
        yield


def _copy(unit: Unit, device: torch.device) -> nn.Module:
    if any(is_lazy(p) for p in (*unit.module.parameters(), *unit.module.buffers())):
        raise UserError(
            f"unit {unit.name!r} has lazy parameters without a shape: run one batch through the "
            "network before planning"
        )
    try:
        (arrived,) = carried_here([unit])
    except UserError:
        raise
    except Exception as error:  # a module may raise anything
        raise UserError(
            f"unit {unit.name!r} cannot be copied ({one_line(str(error), 200)}): let it be pickled"
        ) from error
    module = arrived.module
    module.zero_grad(set_to_none=True)
    return module.to(device).train()


def _call(unit: Unit, module: nn.Module, x: Tensor) -> Tensor:
    shape = tuple(x.shape)  # before the call: an in-place unit may change it
    try:
        y = module(x)
    except Exception as error:  # a module may raise anything
        raise _failure(unit, shape, error) from error
    if not isinstance(y, Tensor):
        raise UserError(
            f"unit {unit.name!r} returns {type(y).__name__} for an input of shape {shape}: "
            "a unit must return one Tensor"
        )
    if y.shape[:1] != shape[:1]:
        raise UserError(
            f"unit {unit.name!r} maps an input of shape {shape} to {tuple(y.shape)}: "
            "a unit must keep the batch as its first dimension"
        )
    return y


def _failure(unit: Unit, shape: tuple[int, ...], error: Exception) -> UserError:
    return UserError(
        f"unit {unit.name!r} fails on an input of shape {shape} ({one_line(str(error), 200)}): "
        "change the unit or the one before it so that the shapes fit"
    )


def _check_room(unit: Unit, module: nn.Module, x: Tensor, before: int) -> int:
    """Refuse a batch whose activations do not fit this machine, before it is run.

    Args:
        x: (B, ...) input of the unit, of which a few rows are run.
        before: bytes that the units before it keep.

    Returns:
        About the bytes that it keeps and sends for the whole batch.
    """
    if len(x) <= FEW:
        return 0
    few = x[:FEW]
    try:
        y, saved = _forward_saving([(unit, module)], few)
    except UserError:
        return 0  # the whole batch fails as well, and says so
    count = (saved + y.numel() * y.element_size()) * len(x) // max(1, len(few))
    check_fits(
        before + count,
        f"what the units up to {unit.name!r} keep for a batch of {len(x):,}",
        "lower training.batch, or make the network smaller",
    )
    return count


def _measure(unit: Unit, module: nn.Module, x: Tensor) -> tuple[UnitSize, Tensor]:
    """Return the unit's size and its detached output for the input `x` (B, ...)."""
    y, saved = _forward_saving([(unit, module)], x)
    size = UnitSize(
        name=unit.name,
        parameters=sum(p.numel() for p in module.parameters()),
        output_shape=tuple(y.shape[1:]),
        output_bytes=y.numel() * y.element_size(),
        activation_bytes=saved,
    )
    return size, y


def _forward_saving(chain: Sequence[tuple[Unit, nn.Module]], x: Tensor) -> tuple[Tensor, int]:
    """Run `chain` on `x` (B, ...); return the detached output and the bytes saved for backward."""
    owned = {
        t.untyped_storage().data_ptr()
        for _, module in chain
        for t in (*module.parameters(), *module.buffers())  # they exist with or without backward
    }
    # Keeping the storages keeps their addresses from being reused while we count.
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned:
            kept[storage.data_ptr()] = storage
        return t.detach()  # not t: an output that its own graph node holds would never be freed

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        _, y = _input(x)
        for unit, module in chain:
            y = _call(unit, module, y)
    return y.detach(), sum(storage.nbytes() for storage in kept.values())


def _input(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return a leaf copy of `x` and a copy of that leaf, which a unit may change in place."""
    leaf = x.detach().clone().requires_grad_(x.is_floating_point())
    return leaf, leaf.clone()


def _timed_run(unit: Unit, module: nn.Module, x: Tensor) -> tuple[float, float]:
    """Run forward and backward once on `x` (B, ...); return both times in seconds."""
    module.zero_grad(set_to_none=True)
    _, inputs = _input(x)
    start = now(x.device)
    y = _call(unit, module, inputs)
    middle = now(x.device)
    if not y.requires_grad:
        return middle - start, 0.0
    gradient = torch.ones_like(y)
    before = now(x.device)
    try:
        backward(y, gradient)
    except Exception as error:  # a module may raise anything
        raise _failure(unit, tuple(x.shape), error) from error
    return middle - start, now(x.device) - before


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # kernels run asynchronously: wait for them
    return time.perf_counter()
