"""Tensors as safetensors files, written from the memory in which they lie, and their checksums.

The safetensors package would copy every tensor to make one file of them. The format is simple: the
length of a header in 8 bytes, the header in JSON, then the bytes of all tensors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import safetensors.torch
import torch
import xxhash
from safetensors import SafetensorError
from torch import Tensor

from learning.errors import UserError
from orchestrator.files import Chunk, DamageError

CHECKSUMS = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}
"""By name in a manifest."""
WRITTEN = "xxh3_128"
"""Twenty times as fast as SHA-256; it finds what disks and networks do to a file, not what somebody
does who means harm."""

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_IN_CACHE = 2**18  # bytes that are still there when they are written
_ALIGNMENT = 8  # bytes; the widest types come first, so that each tensor is aligned to its own


class Hashed:
    """The chunks of a file, hashed as they are written, when they are in a processor's cache."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._chunks = chunks
        self._digest = CHECKSUMS[WRITTEN]()
        self.size = sum(len(chunk) for chunk in chunks)

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks:
            for start in range(0, len(chunk), _IN_CACHE):
                part = chunk[start : start + _IN_CACHE]
                self._digest.update(part)
                yield part

    @property
    def checksum(self) -> str:
        """Of what was iterated over, which has to be once; hexadecimal digits."""
        return self._digest.hexdigest()


def encode_tensors(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[Chunk]:
    """Encode tensors as chunks of a safetensors file; those of contiguous ones are their memory.

    Args:
        metadata: what the file says besides.

    Raises:
        UserError: for a type that safetensors does not have.
    """
    # The format is as Hugging Face expects.
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    chunks: list[Chunk] = []
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])):
        if tensor.dtype not in _DTYPES:
            raise UserError(
                f"tensor {name} is of type {tensor.dtype}, which safetensors files do not have: "
                f"use one of {', '.join(str(dtype) for dtype in _DTYPES)}"
            )
        data = _bytes_of(tensor)
        start, end = end, end + data.nbytes
        kind = _DTYPES[tensor.dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        chunks.append(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return [len(text).to_bytes(8, "little") + text, *chunks]


def decode_tensors(
    data: bytes, size: int, sums: Mapping[str, str], where: str, fix: str
) -> dict[str, Tensor]:
    """Decode a safetensors file, after verifying size and checksums.

    Args:
        sums: by name of the checksum.
        where: the file, for the error message.
        fix: what the user can do about damage.

    Raises:
        DamageError: for bytes that are not those.
    """
    if len(data) != size:
        raise DamageError(f"{where} has {len(data)} bytes and should have {size}: {fix}")
    for name, expected in sums.items():
        if CHECKSUMS[name](data).hexdigest() != expected:
            raise DamageError(f"{where} is damaged (its {name} is not the manifest's): {fix}")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise DamageError(f"{where} is not a safetensors file ({error}): {fix}") from error
    except KeyError as error:  # of its table of types, which has fewer than the format
        what = f"a tensor of type {error.args[0]}, which is never written"
        raise DamageError(f"{where} has {what}: {fix}") from error


def _bytes_of(tensor: Tensor) -> memoryview:
    # Those of one element, or none, are contiguous with any strides.
    flat = tensor.detach().cpu().contiguous().as_strided((tensor.numel(),), (1,))
    return flat.view(torch.uint8).numpy().data
