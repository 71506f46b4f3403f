"""Tensors as safetensors files, and learners' states as one state of the original module."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from learning.errors import UserError
from orchestrator.files import ANOTHER_FILE, DamageError, create_file

State = Mapping[str, Mapping[str, Tensor]]
"""Tensors by learner, then by name."""


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Encode tensors as safetensors, which refuses strides and memory that tensors share."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        memory = tensor.untyped_storage().data_ptr()
        if memory in seen:
            tensor = tensor.clone()
        seen.add(memory)
        plain[name] = tensor
    return safetensors.torch.save(plain, metadata={"format": "pt"})  # as Hugging Face expects


def decode_tensors(data: bytes, size: int, sha256: str, where: str, fix: str) -> dict[str, Tensor]:
    """Decode what `encode_tensors` encoded, after verifying size and checksum.

    Args:
        where: the file, for the error message.
        fix: what the user can do about damage.

    Raises:
        DamageError: for bytes that are not those.
    """
    if len(data) != size:
        raise DamageError(f"{where} has {len(data)} bytes and should have {size}: {fix}")
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamageError(f"{where} is damaged (its sha256 is not the manifest's): {fix}")
    try:
        return safetensors.torch.load(data)
    except SafetensorError as error:
        raise DamageError(f"{where} is not a safetensors file ({error}): {fix}") from error


def model_state(state: State) -> dict[str, Tensor]:
    """Merge the `model.*` tensors of all learners into a state_dict of the original module.

    Raises:
        UserError: when two learners hold a tensor of the same name.
    """
    merged: dict[str, Tensor] = {}
    owner: dict[str, str] = {}
    for learner, tensors in state.items():
        for full_name, tensor in tensors.items():
            kind, _, name = full_name.partition(".")
            if kind != "model":
                continue
            if name in merged:
                raise UserError(
                    f"tensor {name} is in {owner[name]} and in {learner}: a tensor has one owner, "
                    "so load a checkpoint of one run"
                )
            merged[name], owner[name] = tensor, learner
    return merged


def export(state: State, path: Path) -> None:
    """Write the model's tensors to one plain safetensors file.

    Raises:
        UserError: when the file exists or its directory does not.
    """
    if os.path.lexists(path):  # before encoding, which takes a while
        raise UserError(f"{path} exists: {ANOTHER_FILE}")
    create_file(path, encode_tensors(model_state(state)))
