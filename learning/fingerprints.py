"""Fingerprints: short texts by which data, modules and sets of tensors are told apart.

The checksum is XXH3, which is as fast as memory: it finds what was changed by accident, not what
somebody made to look the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

import numpy as np
import xxhash
from torch import Tensor, nn

from learning.data.datasets import Dataset
from learning.data.preprocessing import Preprocessing

_PIECE = 1 << 22  # bytes hashed at a time: memory mapped rows need not be in memory together
_LONGEST = 80  # letters of a module that is told as it is


def data_fingerprint(dataset: Dataset) -> dict[str, str]:
    """Tell what a run learns from and is judged by, part by part.

    Returns:
        By name of the part the hash of its type, shape and bytes (`train rows`, `test labels`, ...)
        or of what it says (`mean`, `classes` and whatever else `Preprocessing` has).
    """
    told: dict[str, str] = {}
    for name in ("train", "validation", "test"):
        split = dataset.split(name)
        rows = split.chunks(_PIECE // split.dtype.itemsize)
        told[f"{name} rows"] = _hash(split.dtype, (len(split), *split.row_shape), rows)
        told[f"{name} labels"] = _hash(split.y.dtype, split.y.shape, [split.y])
    return {**told, **preprocessing_fingerprint(dataset.preprocessing)}


def preprocessing_fingerprint(preprocessing: Preprocessing) -> dict[str, str]:
    """The part of it that tells what a network sees of rows, by field."""
    return {
        name: xxhash.xxh3_64_hexdigest(json.dumps(value).encode())
        for name, value in preprocessing.model_dump(mode="json").items()
    }


def _hash(dtype: np.dtype, shape: Iterable[int], pieces: Iterable[np.ndarray]) -> str:
    digest = xxhash.xxh3_128(f"{dtype.name}{tuple(shape)}".encode())
    for piece in pieces:
        # As bytes in C order, whatever the order in memory.
        digest.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def module_fingerprint(module: nn.Module) -> str:
    """Tell a module by its types and what torch's layers say of themselves, not by its weights.

    Two modules of a user's own that differ in code alone look the same.
    """
    told = [f"{name}{_own(part)}" for name, part in module.named_modules()]
    text = " ".join(told)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST // 2]}... ({xxhash.xxh3_64_hexdigest(text.encode())})"


def _own(module: nn.Module) -> str:
    kind = type(module)
    # What users write there may hold numbers that change in training.
    settings = module.extra_repr() if kind.__module__.startswith("torch.nn.") else ""
    return f"{kind.__qualname__}({settings})"


def tensors_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Tell a set of tensors by their names, types and shapes, not by their values."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    return digest.hexdigest()
