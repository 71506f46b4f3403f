"""Tensors to NumPy arrays and back: what Ray's object store carries without a copy on reading."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from learning.messages import Message

Arrays = dict[str, np.ndarray]

_BFLOAT16 = ":bfloat16"  # NumPy has no bfloat16: such tensors travel as the same bits in int16
_ALIGNMENT = 64  # bytes; kernels may round differently on memory aligned less than torch's own

# Received arrays are views of shared memory and rightly read-only. Blocks refuse to write into
# their input (learning/learners/block.py), so the warning would only repeat on every message.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")


def encode(message: Message) -> Arrays:
    """Turn contiguous tensors on any device into arrays on the host."""
    arrays: Arrays = {}
    for name, tensor in _to_host(message).items():
        if tensor.dtype == torch.bfloat16:
            arrays[name + _BFLOAT16] = tensor.view(torch.int16).numpy()
        else:
            arrays[name] = tensor.numpy()
    return arrays


def decode(arrays: Arrays, device: torch.device) -> Message:
    """Turn arrays into tensors on `device`; on the CPU they share the arrays' memory."""
    message: Message = {}
    for name, array in arrays.items():
        tensor = torch.from_numpy(array)
        if name.endswith(_BFLOAT16):
            name, tensor = name.removesuffix(_BFLOAT16), tensor.view(torch.bfloat16)
        if device.type == "cuda":
            # Pinned memory lets the copy overlap with work on the device.
            tensor = tensor.pin_memory().to(device, non_blocking=True)
        elif tensor.data_ptr() % _ALIGNMENT:
            tensor = tensor.clone()
        message[name] = tensor
    return message


def size(arrays: Arrays) -> int:
    """Bytes of all arrays."""
    return sum(a.nbytes for a in arrays.values())


def _to_host(message: Message) -> Message:
    devices = {t.device for t in message.values() if t.device.type == "cuda"}
    if not devices:
        return message
    host = dict(message)
    for device in devices:
        side = _side_stream(device)
        # The copies wait for the work that made the tensors, not for what is queued after it.
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            for name, tensor in message.items():
                if tensor.device == device:
                    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                    host[name] = pinned.copy_(tensor, non_blocking=True)
                    tensor.record_stream(side)
        side.synchronize()
    return host


_side_streams: dict[torch.device, torch.cuda.Stream] = {}


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    if device not in _side_streams:
        _side_streams[device] = torch.cuda.Stream(device)
    return _side_streams[device]


def detach_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copy a learner's state to the host, so that training may go on while it is written."""
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.items()
    }
