"""Codecs: how the floating-point tensors of a message are written for the way between two blocks.

A codec turns one tensor into named tensors of a message and back. Coding is a pure function of the
tensor, without random numbers, so that every engine computes the same bits. What a codec loses is
lost once: coding what was decoded gives the same codes again (decoded to float32 or float64).
Tensors of integers, such as tokens and labels, pass unchanged through every codec.
"""

from __future__ import annotations

import torch
from torch import Tensor

from learning.messages import Message, from_memory_order, in_memory_order, outgoing

_FLOOR = 2.0**-100  # smallest scale: keeps zeros apart from 0/0, far below any activation


class Codec:
    """Tensors travel as they are, in their own type and layout. The base of the other codecs."""

    @torch.no_grad()
    def encode(self, name: str, tensor: Tensor, tokens: Tensor | None = None) -> Message:
        """Write a tensor as named tensors, contiguous and detached.

        Args:
            name: the tensor's name in the message; further names begin with `<name>.`.
            tensor: of any shape; integers pass unchanged.
            tokens: what the tensor belongs to, (B, T); only the subspace codec reads them.
        """
        if not tensor.is_floating_point() or type(self) is Codec:
            return in_memory_order(name, tensor.detach())
        return {n: outgoing(t) for n, t in self._encode(name, tensor.detach(), tokens).items()}

    @torch.no_grad()
    def decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        """Read back the tensor `name` of a message that `encode` wrote.

        Args:
            message: holds the tensors that `encode` gave, perhaps among others.
            name: as given to `encode`.
            dtype: type of the result. Integers keep their own, and so do tensors that the
                base class wrote, which travel in it.
        """
        passed = not message[name].is_floating_point() or type(self) is Codec
        if passed and not self._is_coded(message, name):
            return from_memory_order(message, name)
        return self._decode(message, name, dtype)

    def _encode(self, name: str, tensor: Tensor, tokens: Tensor | None) -> Message:
        return {name: tensor}

    def _decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        return message[name]

    def _is_coded(self, message: Message, name: str) -> bool:
        """Whether integers under `name` are codes."""
        return False


class BFloat16(Codec):
    """Rounded to bfloat16, half to even: |error| <= 2^-8 |x|, the range of float32, 2 bytes."""

    def _encode(self, name: str, tensor: Tensor, tokens: Tensor | None) -> Message:
        return {name: tensor.to(torch.bfloat16)}

    def _decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        return message[name].to(dtype)


class Float16(Codec):
    """Rounded to float16 under one power of two a tensor, `<name>.scale` (), 2 bytes.

    The scale puts the largest magnitude m into [2^14, 2^15], so nothing overflows and nothing is
    clamped, and small gradients do not vanish: |error| <= max(2^-11 |x|, 2^-39 m), half to even.
    A tensor with NaN or infinity decodes to NaN everywhere.
    """

    def _encode(self, name: str, tensor: Tensor, tokens: Tensor | None) -> Message:
        x = tensor.float()
        # The power of two below the largest magnitude, as it will be when rounded to 11 bits:
        # a carry at bit 12 moves to the exponent, all other bits are masked away. Without the
        # carry, 1.9999 would be decoded as 2 and coded anew under another scale.
        largest = x.abs().amax().view(torch.int32)
        power = ((largest + (1 << 12)) & 0x7F800000).view(torch.float32)
        scale = (power * 2.0**-14).clamp(min=_FLOOR)
        return {name: (x / scale).half(), f"{name}.scale": scale}

    def _decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        return _scaled(message[name], message[f"{name}.scale"], dtype)


class Int8(Codec):
    """Rounded to the integers -127..127 times one scale a channel, `<name>.scale`, 1 byte.

    A channel is an index of dimension 1 of (B, C, H, W, ...), of the last dimension of (B, D) and
    (B, T, D); a vector has one scale. The scale is the channel's largest magnitude / 127, float32,
    in the tensor's shape with 1 in all other dimensions: |error| <= scale / 2, half to even. A
    channel of zeros decodes to zeros, one with NaN or infinity to NaN everywhere.
    """

    def _encode(self, name: str, tensor: Tensor, tokens: Tensor | None) -> Message:
        x = tensor.float()
        largest = x.abs().amax(dim=_all_but_channel(x), keepdim=True)
        # Cut to 17 significant bits, so that 127 * scale is exact in float32 and coding what was
        # decoded finds the same scale.
        scale = ((largest / 127).view(torch.int32) & ~0x7F).view(torch.float32).clamp(min=_FLOOR)
        codes = (x / scale).round().clamp(-127, 127)
        return {name: codes.nan_to_num(nan=0.0).to(torch.int8), f"{name}.scale": scale}

    def _decode(self, message: Message, name: str, dtype: torch.dtype) -> Tensor:
        return _scaled(message[name], message[f"{name}.scale"], dtype)

    def _is_coded(self, message: Message, name: str) -> bool:
        return f"{name}.scale" in message


def _scaled(codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    work = torch.promote_types(dtype, torch.float32)
    return (codes.to(work) * scale.to(work)).to(dtype)


def _all_but_channel(x: Tensor) -> tuple[int, ...]:
    if x.dim() < 2:
        return tuple(range(x.dim()))
    channel = x.dim() - 1 if x.dim() < 4 else 1
    return tuple(i for i in range(x.dim()) if i != channel)
