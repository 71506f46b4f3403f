"""Every kind of network is exported, for any batch, and read back by PyTorch alone."""

from __future__ import annotations

from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest
import torch
from mlflow.models import Model
from torch import nn

from learning.data import arrays_dataset
from learning.networks import GPTSettings, NetworkSettings, build_network
from learning.networks.mlp import MLPSettings
from learning.networks.resnet import ResNetSettings
from learning.networks.vgg import VGG8bSettings
from learning.networks.vit import ViTSettings
from learning.prediction import Trained
from learning.settings import PrecisionSettings
from tuning.models import save_model

IMAGES = torch.zeros(2, 3, 32, 32)
CASES: dict[str, tuple[NetworkSettings, torch.Tensor]] = {
    "mlp": (MLPSettings(widths=(4,), dropout=0.5), torch.zeros(1, 6)),
    "vgg8b": (VGG8bSettings(width=0.05), IMAGES),
    "resnet": (ResNetSettings(widths=(2, 4), depths=1), IMAGES),
    "vit": (ViTSettings(patch=8, width=6, depth=1, heads=3, mlp_ratio=2), IMAGES),
    "gpt": (
        GPTSettings(width=8, depth=1, heads=2, mlp_ratio=2),
        torch.zeros(2, 5, dtype=torch.int64),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_a_network_is_exported(kind: str, tmp_path: Path) -> None:
    settings, rows = CASES[kind]
    tokens = rows.dtype == torch.int64
    network = build_network(settings, tuple(rows.shape[1:]), 7, 0, tokens=tokens)
    save_model(network, rows, tmp_path / "model")
    signature = Model.load(str(tmp_path / "model")).signature
    assert signature is not None and signature.inputs is not None
    assert signature.inputs.inputs[0].shape == (-1, *rows.shape[1:])
    assert network.training
    read = torch.export.load(tmp_path / "model/data/model.pt2").module()
    network.eval()
    for batch in (1, 5):
        x = torch.randn(batch, *rows.shape[1:])
        x = torch.randint(0, 7, (batch, *rows.shape[1:])) if tokens else x
        with torch.no_grad():
            torch.testing.assert_close(read(x), network(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_a_network_of_raw_rows_is_exported_with_its_preprocessing(
    kind: str, tmp_path: Path
) -> None:
    raw = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 3)).astype(kind)
    data = arrays_dataset(raw, np.arange(9) % 3, raw, np.arange(9) % 3, validation=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(18, 3))
    one = Trained(network, data.preprocessing, PrecisionSettings(), 9, "a run")
    save_model(one.from_raw(), one.raw_example(), tmp_path / "model")
    signature = Model.load(str(tmp_path / "model")).signature
    assert signature is not None and signature.inputs is not None
    spec = signature.inputs.inputs[0]
    assert (spec.type, spec.shape) == (np.dtype(kind), (-1, 2, 3, 3))
    read = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    np.testing.assert_allclose(read.predict(raw), one.scores(raw), rtol=1e-5, atol=1e-5)
