"""Messages on a stream socket: a header in JSON, then the bytes of the arrays."""

from __future__ import annotations

import json
import socket
import struct

import numpy as np
import torch

from actors.wire import Arrays
from learning.messages import Key

_LENGTH = struct.Struct("!I")
_KINDS = "biuf"  # booleans and numbers: arrays whose bytes are all there is to them


def write(sock: socket.socket, key: Key, arrays: Arrays) -> None:
    """Write one message; returns when the kernel has taken its bytes over.

    Raises:
        OSError: when the other end has gone.
    """
    layout = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    header = json.dumps([key, layout]).encode()
    parts = [memoryview(_LENGTH.pack(len(header)) + header)]
    parts += [a.reshape(-1).view(np.uint8).data for a in arrays.values() if a.size]
    while parts:
        sent = sock.sendmsg(parts)
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][sent:]


def read(sock: socket.socket) -> tuple[Key, Arrays] | None:
    """Read one message into new memory; None when the other end has closed before it.

    Raises:
        ConnectionError: when the connection ends within a message.
        ValueError: for an array that is not of numbers or booleans.
    """
    prefix = bytearray(_LENGTH.size)
    if not sock.recv_into(prefix, 1):
        return None
    _fill(sock, memoryview(prefix)[1:])
    header = bytearray(_LENGTH.unpack(prefix)[0])
    _fill(sock, memoryview(header))
    key, layout = json.loads(header)
    arrays: Arrays = {}
    for name, dtype, shape in layout:
        kind = np.dtype(dtype)
        if kind.kind not in _KINDS:
            raise ValueError(f"array {name!r} of a message has dtype {dtype!r}")
        size = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        # torch's allocation is aligned as its kernels like it: see wire.decode.
        memory = torch.empty(size, dtype=torch.uint8).numpy()
        if size:
            _fill(sock, memory.data)
        arrays[name] = memory.view(kind).reshape(shape)
    return Key(*key), arrays


def _fill(sock: socket.socket, view: memoryview) -> None:
    while view:
        count = sock.recv_into(view)
        if not count:
            raise ConnectionError("the connection ended within a message")
        view = view[count:]
