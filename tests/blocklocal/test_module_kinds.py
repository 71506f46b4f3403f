"""Every kind of user module: the bits of a plain PyTorch loop in both engines, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blocklocal import UserError, fit
from learning.data import AugmentSettings, Batches, Dataset
from learning.numerics import input_type
from tests.blocklocal.helpers import blobs
from tests.blocklocal.module_kinds import KINDS, REFUSED

BATCH, STEPS = 8, 6
BY_SUMS = {"orthogonal"}
"""The derivative of a matrix exponential is not linear in the last digit."""
OPTIMIZERS = {
    "sgd": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
    "adamw": {"kind": "adamw", "lr": 0.01, "weight_decay": 0.1},
}

pytestmark = pytest.mark.usefixtures("no_fsync")


@pytest.fixture(scope="module")
def data() -> Dataset:
    return blobs(rows=80)


def made(name: str) -> nn.Sequential:
    """The network of a kind, the same each time."""
    torch.manual_seed(0)
    return (KINDS.get(name) or REFUSED[name][0])()


def sections(run: Path, optimizer: str = "sgd", engine: str = "sequential") -> dict[str, Any]:
    return {
        "training": {"batch": BATCH, "steps": STEPS, "evaluate_every": 4},
        "optimizer": {"clip": None, **OPTIMIZERS[optimizer]},
        "schedule": {"kind": "constant"},
        "engine": {"kind": engine, "resources": {"threads": 1}},
        "tracking": {"enabled": False},
        "run": {"directory": run},
    }


def trained(model: nn.Sequential, data: Dataset, run: Path, **more: Any) -> nn.Module:
    """Train by `fit`, two blocks; the model itself."""
    at = [list(dict(model.named_children()))[2]]
    return fit(model, data, rule="backprop", blocks=at, **sections(run, **more)).model


def plain_loop(
    model: nn.Sequential, data: Dataset, optimizer: str = "sgd", *, summed: bool = False
) -> nn.Module:
    """What a user would write, with the mean loss of a batch or, `summed`, a mean of gradients."""
    if not model.training:
        model.train()
    rates = {k: v for k, v in OPTIMIZERS[optimizer].items() if k != "kind"}
    kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
    learning = [p for p in model.parameters() if p.requires_grad]
    stepper = kinds[optimizer](learning, **rates)
    batches = Batches(data, seed=0, batch=BATCH, augment=AugmentSettings())
    for step in range(STEPS):
        x, y = batches.shard(step, 0)
        stepper.zero_grad()
        scores = model(x.to(input_type(model)))
        wide = scores if scores.dtype == torch.float64 else scores.float()
        F.cross_entropy(wide, y, reduction="sum" if summed else "mean").backward()
        for parameter in learning if summed else ():
            if parameter.grad is not None:
                parameter.grad /= BATCH
        stepper.step()
    return model.eval()


def everything(model: nn.Module) -> dict[str, Any]:
    """All that a module holds: its state, hidden buffers, and what it computes."""
    state = dict(model.state_dict())
    state |= {f"buffer {name}": buffer for name, buffer in model.named_buffers()}
    torch.manual_seed(1)
    with torch.no_grad():
        state["output"] = model(torch.randn(4, 8).to(input_type(model)))
    return state


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, Tensor):
            assert value.dtype == other[name].dtype, name
            assert torch.equal(value, other[name]), name
        else:
            assert repr(value) == repr(other[name]), name


@pytest.mark.parametrize("name", KINDS)
def test_the_bits_of_a_plain_loop(name: str, data: Dataset, tmp_path: Path) -> None:
    before = everything(made(name).eval())
    expected = everything(plain_loop(made(name), data, summed=name in BY_SUMS))
    got = everything(trained(made(name), data, tmp_path / "run"))
    assert_same(got, expected)
    assert any(not torch.equal(t, before[n]) for n, t in got.items() if isinstance(t, Tensor))


@pytest.mark.parametrize("name", REFUSED)
def test_one_sentence_before_the_first_step(name: str, data: Dataset, tmp_path: Path) -> None:
    model = made(name)
    with pytest.raises(UserError) as caught:
        trained(model, data, tmp_path / "run")
    said = str(caught.value)
    assert REFUSED[name][1] in said and len(said) < 500 and "\n" not in said
    assert not (tmp_path / "run").exists()


def test_both_engines_train_all_kinds_at_once(
    ray_cluster: None, data: Dataset, tmp_path: Path
) -> None:
    """Actors are slow to start: one run has a unit of each kind that another process may lose."""
    expected = everything(plain_loop(together(), data, "adamw"))
    for engine in ("sequential", "ray"):
        model = trained(together(), data, tmp_path / engine, optimizer="adamw", engine=engine)
        assert_same(everything(model), expected)


def together() -> nn.Sequential:
    """Special units of many kinds, in two blocks."""
    names = [
        "hook_that_masks_rows_of_a_gradient",
        "hook_after_accumulation",
        "full_backward_hook_on_a_unit",
        "hidden_buffer",
        "random_hidden_buffer",
        "complex_buffer",
        "complex_parameter",
        "integer_and_boolean_buffers",
        "frozen_batch_norm",
        "weight_norm",
        "spectral_norm",
        "old_spectral_norm",
        "extra_state_of_plain_values",
        "extra_state_of_tensors",
        "frozen_parameters",
        "parameter_that_is_not_contiguous",
        "lambdas_and_local_classes",
        "slots",
        "lists_and_dicts_of_parameters",
        "attributes_on_parameters",
        "tensor_that_is_not_registered",
    ]
    middle = [unit for name in names for unit in [*list(made(name))[2:-2], nn.LayerNorm(8)]]
    model = nn.Sequential(nn.Linear(8, 8), *middle, nn.Linear(8, 4))
    half = len(middle) // 2
    return nn.Sequential(nn.Sequential(*model[:1]), nn.Sequential(*model[1:half]), model[half:])
