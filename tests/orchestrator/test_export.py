"""Exports: one plain file of the original module, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from learning.errors import UserError
from orchestrator.tensors import export, model_state
from tests.orchestrator.checkpointing import (
    make_state,
    same,
)
from tests.orchestrator.faults import with_faults

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.mark.parametrize("links", [True, False])
def test_interrupted_export(tmp_path: Path, links: bool) -> None:
    def act(d: Path) -> None:
        with mock.patch("os.link", os.link if links else mock.Mock(side_effect=OSError(1, "no"))):
            export(make_state(1), d / "model.safetensors")

    for d, _ in with_faults(tmp_path, lambda d: None, act):
        path = d / "model.safetensors"
        if path.exists():
            assert same({"": safetensors.torch.load_file(path)}, {"": model_state(make_state(1))})
        else:
            act(d)
            assert os.listdir(d) == ["model.safetensors"]


def test_model_state_and_export(tmp_path: Path) -> None:
    state, path = make_state(1), tmp_path / "model.safetensors"
    merged = model_state(state)
    assert list(merged) == ["0.weight", "1.weight"]
    assert merged["1.weight"] is state["block2"]["model.1.weight"]
    export(state, path)
    assert same({"": safetensors.torch.load_file(path)}, {"": merged})
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"model.safetensors exists: .*another"):
        export(make_state(2), path)
    # A file that appears while the tensors are being encoded is not overwritten either.
    with (
        mock.patch("os.path.lexists", return_value=False),
        pytest.raises(UserError, match="exists"),
    ):
        export(make_state(2), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]
    with pytest.raises(UserError, match="cannot write"):
        export(state, tmp_path / "none" / "model.safetensors")
    state["block9"] = {"model.0.weight": torch.zeros(1)}
    with pytest.raises(UserError, match=r"0.weight is in block1 and in block9"):
        model_state(state)
