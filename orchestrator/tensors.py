"""Learners' states as one state of the original module."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from learning.data.preprocessing import Preprocessing
from learning.errors import UserError
from learning.module_state import load_module_state
from orchestrator.files import ANOTHER_FILE, create_file
from orchestrator.tensor_files import encode_tensors

PREPROCESSING = "preprocessing"
"""Its name in the metadata of an exported file."""
State = Mapping[str, Mapping[str, Tensor]]
"""Tensors by learner, then by name."""


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


def load_model(model: nn.Module, state: State) -> None:
    """Load all that the learners know of the original module: weights, buffers and extra state."""
    merged = {f"model.{name}": tensor for name, tensor in model_state(state).items()}
    for tensors in state.values():
        merged |= {n: t for n, t in tensors.items() if n.startswith(("hidden.", "extra."))}
    load_module_state(model, merged)


def export(state: State, path: Path, preprocessing: Preprocessing | None = None) -> None:
    """Write the model's tensors to one plain safetensors file.

    Args:
        preprocessing: what turns raw rows into what the model takes; JSON in the file's metadata.

    Raises:
        UserError: when the file exists or its directory does not.
    """
    if os.path.lexists(path):  # before encoding, which takes a while
        raise UserError(f"{path} exists: {ANOTHER_FILE}")
    metadata = {} if preprocessing is None else {PREPROCESSING: preprocessing.model_dump_json()}
    create_file(path, encode_tensors(model_state(state), metadata))
