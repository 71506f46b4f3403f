"""Messages on a stream socket: a header in JSON, then the bytes of the arrays."""

from __future__ import annotations

import json
import math
import socket
import struct

import numpy as np
import torch

from actors.wire import Arrays
from learning.messages import Key

_LENGTH = struct.Struct("!I")
_BUFFER = 2**16  # bytes
_PARTS = 1000  # at a time: Linux takes 1024
HEADER_BYTES = 16 * 2**20
"""Of a header at most: more than 100,000 arrays need."""
_KINDS = "biuf"  # booleans and numbers: arrays whose bytes are all there is to them


def write(sock: socket.socket, key: Key, arrays: Arrays) -> None:
    """Write one message; returns when the kernel has taken its bytes over.

    Raises:
        ConnectionError: when the other end has gone.
        ValueError: for too many arrays.
    """
    layout = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    header = json.dumps([key, layout]).encode()
    if len(header) > HEADER_BYTES:
        raise ValueError(f"a message of {len(arrays)} arrays has a header of {len(header)} bytes")
    parts = [memoryview(_LENGTH.pack(len(header)) + header)]
    parts += [a.reshape(-1).view(np.uint8).data for a in arrays.values() if a.size]
    while parts:
        sent = sock.sendmsg(parts[:_PARTS])
        while parts and sent >= len(parts[0]):
            sent -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][sent:]


class Reader:
    """Reads messages off a socket, small ones with a single call.

    Each call gives the interpreter away and has to get it back from a program that computes; that,
    not copying, is what a message costs.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0  # of what is in the buffer and not yet read

    def read(self) -> tuple[Key, Arrays] | None:
        """Read one message into new memory; None when the other end has closed before it.

        Raises:
            ConnectionError: when the connection ends within a message.
            ValueError: for an array that is not of numbers or booleans, or a header that no message
                has.
        """
        if self._start == self._end and not self._receive():
            return None
        prefix = bytearray(_LENGTH.size)
        self._fill(memoryview(prefix))
        length = _LENGTH.unpack(prefix)[0]
        if length > HEADER_BYTES:
            raise ValueError(f"a message announces a header of {length} bytes")
        header = bytearray(length)
        self._fill(memoryview(header))
        try:
            key, layout = json.loads(header)
            key, layout = Key(*key), [(str(n), np.dtype(d), tuple(s)) for n, d, s in layout]
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"a message has a header that is none ({error})") from error
        arrays: Arrays = {}
        for name, kind, shape in layout:
            if kind.kind not in _KINDS:
                raise ValueError(f"array {name!r} of a message has dtype {kind!r}")
            # torch's allocation is aligned as its kernels like it: see wire.decode.
            memory = torch.empty(kind.itemsize * math.prod(shape), dtype=torch.uint8).numpy()
            if memory.size:
                self._fill(memory.data)
            arrays[name] = memory.view(kind).reshape(shape)
        return key, arrays

    def _receive(self) -> bool:
        """Get more into the empty buffer; False at the end of the connection."""
        self._start, self._end = 0, self._socket.recv_into(self._buffer)
        return self._end > 0

    def _fill(self, view: memoryview) -> None:
        while view:
            ready = min(len(view), self._end - self._start)
            if ready:
                view[:ready] = self._buffer[self._start : self._start + ready]
                self._start += ready
                view = view[ready:]
            elif len(view) < _BUFFER:
                if not self._receive():
                    raise ConnectionError("the connection ended within a message")
            else:
                count = self._socket.recv_into(view, len(view), socket.MSG_WAITALL)
                if not count:
                    raise ConnectionError("the connection ended within a message")
                view = view[count:]
