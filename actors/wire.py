"""Tensors to NumPy arrays and back: what Ray's object store carries without a copy on reading."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from actors.staging import staging
from learning.messages import Message

Arrays = dict[str, np.ndarray]

_BFLOAT16 = ":bfloat16"  # NumPy has no bfloat16: such tensors travel as the same bits in int16
_ALIGNMENT = 64  # bytes; kernels may round differently on memory aligned less than torch's own

# Received arrays are views of shared memory and rightly read-only. Blocks refuse to write into
# their input (learning/learners/block.py), so the warning would only repeat on every message.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def encode(message: Message) -> Arrays:
    """Turn contiguous tensors on any device into arrays on the host.

    The arrays of CPU tensors share their memory. Those of GPU tensors are complete, in memory that
    is theirs as long as anything holds them (actors/staging.py).
    """
    tensors: Message = {}
    for name, tensor in message.items():
        if tensor.dtype == torch.bfloat16:
            tensors[name + _BFLOAT16] = tensor.view(torch.int16)
        else:
            tensors[name] = tensor
    fetched: Arrays = {}
    for device in {t.device for t in tensors.values() if t.device.type == "cuda"}:
        there = {name: t for name, t in tensors.items() if t.device == device}
        fetched |= staging(device).fetch(there)
    return {n: fetched[n] if n in fetched else t.numpy() for n, t in tensors.items()}


def decode(arrays: Arrays, device: torch.device) -> Message:
    """Turn arrays into tensors on `device` as `place` does; on the CPU they share memory."""
    message: Message = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array)
        if name.endswith(_BFLOAT16):
            name, tensor = name.removesuffix(_BFLOAT16), tensor.view(torch.bfloat16)
        message[name] = tensor
    return place(message, device)


def place(message: Message, device: torch.device) -> Message:
    """Make tensors on the host ready for a program on `device`.

    The CPU keeps their memory where it is aligned. On a GPU they are ready for work that is queued
    on its default stream from now on.
    """
    if device.type == "cuda":
        return staging(device).upload(message)
    return {n: t.clone() if t.data_ptr() % _ALIGNMENT else t for n, t in message.items()}


def size(arrays: Arrays) -> int:
    """Bytes of all arrays."""
    return sum(a.nbytes for a in arrays.values())


def copied(state: dict[str, Tensor]) -> Arrays:
    """Copy a learner's state to the host, so that training goes on while it is on its way.

    As arrays, which Ray moves as they are; tensors it would encode first.
    """
    plain = {name: t.detach().contiguous() for name, t in state.items()}
    return {n: a.copy() if _on_host(n, plain) else a for n, a in encode(plain).items()}


def _on_host(name: str, tensors: dict[str, Tensor]) -> bool:
    return tensors[name.removesuffix(_BFLOAT16)].device.type == "cpu"


def detach_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy a learner's state to the host, so that training may go on while it is written."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
