"""Numeric policy and randomness of a learner: precision, layout, seeds that are pure functions."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from learning.settings import PrecisionSettings


class Numerics:
    """Applies the precision policy to a module and its inputs on one device."""

    def __init__(
        self,
        settings: PrecisionSettings,
        device: torch.device,
        auxiliary_type: torch.dtype = torch.float32,
    ) -> None:
        assert settings.compute != "auto", "it is chosen before a block is built"
        self.settings, self.device = settings, device
        self.dtype = torch.float64 if settings.compute == "float64" else auxiliary_type
        self.memory_format = (
            torch.channels_last if settings.memory_format == "channels-last" else None
        )

    def prepare(self, module: nn.Module) -> None:
        """Move a user's `module` to the device and layout; its types only change in float64."""
        module.to(device=self.device)
        if self.settings.compute == "float64":
            widen(module)
        self._lay_out(module)

    def prepare_own(self, module: nn.Module) -> None:
        """Move an auxiliary network to the device, with its weights in the type of those."""
        module.to(device=self.device, dtype=self.dtype)
        self._lay_out(module)

    def for_own(self, h: Tensor) -> Tensor:
        """Numbers for an auxiliary network; under autocast, which casts itself, as they are."""
        if not h.is_floating_point() or self.settings.compute == "bfloat16":
            return h
        return h.to(self.dtype)

    def _lay_out(self, module: nn.Module) -> None:
        if self.memory_format is not None:
            for tensor in (*module.parameters(), *module.buffers()):
                if tensor.dim() == 4:
                    tensor.data = tensor.data.contiguous(memory_format=self.memory_format)

    def arrange(self, x: Tensor) -> Tensor:
        """Bring an input to the device and layout; its type only changes in float64."""
        x = x.to(self.device, non_blocking=True)
        if self.dtype == torch.float64 and x.is_floating_point():
            x = x.double()
        if self.memory_format is not None and x.dim() == 4:
            x = x.contiguous(memory_format=self.memory_format)
        return x

    def autocast(self) -> torch.autocast:
        """The context of forward passes; bfloat16 needs no loss scaling, unlike float16."""
        enabled = self.settings.compute == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)


@contextlib.contextmanager
def seeded(device: torch.device, *keys: int | str) -> Iterator[None]:
    """Seed torch's generators from `keys` inside the block and restore them afterwards.

    What is drawn depends on the keys alone: not on the process, the order of work, or a resume.
    """
    digest = hashlib.blake2b(repr(keys).encode(), digest_size=8).digest()
    seed = int.from_bytes(digest, "big") >> 1
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        # torch.manual_seed would also queue work for every accelerator of the machine.
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[device.index or 0].manual_seed(seed)
        yield


def widen(module: nn.Module) -> None:
    """Bring all real numbers of a module to float64 and all complex ones to complex128."""
    module._apply(_widened)


def _widened(tensor: Tensor) -> Tensor:
    if tensor.is_complex():
        return tensor.to(torch.complex128)
    return tensor.double() if tensor.is_floating_point() else tensor


def input_type(module: nn.Module) -> torch.dtype:
    """The type in which a network takes numbers: that of its first parameter, or else float32."""
    for parameter in module.parameters():
        if parameter.is_complex():
            return torch.float64 if parameter.dtype == torch.complex128 else torch.float32
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


class _Seed(torch.autograd.Function):
    """A scalar whose gradient with respect to `output` is a chosen one."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return output.new_zeros((), dtype=torch.float32 if output.is_complex() else None)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def backward(
    output: Tensor,
    gradient: Tensor | None = None,
    *,
    inputs: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
) -> None:
    """`torch.autograd.backward` for one output, of the shape of `gradient`; None for a scalar.

    Handed a gradient, torch imports SymPy to compare shapes, a third of a second in each process.
    """
    if gradient is not None:
        assert gradient.shape == output.shape
        output = _Seed.apply(output, gradient)  # type: ignore[assignment]
    torch.autograd.backward(output, retain_graph=retain_graph, inputs=inputs)
