"""What a module holds besides weights: kept on resuming, in what `fit` returns, and at its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from blocklocal import Observer, StopTraining, UserError, fit
from blocklocal.inference import evaluate_model, load_run
from learning.data import Dataset
from orchestrator.rundir import RunDirectory
from tests.blocklocal.helpers import blobs
from tests.blocklocal.module_kinds import KINDS, Apply, net
from tests.blocklocal.test_module_kinds import assert_same, everything, made, sections

pytestmark = pytest.mark.usefixtures("no_fsync")
STATEFUL = [
    "hidden_buffer",
    "random_hidden_buffer",
    "complex_buffer",
    "extra_state_of_plain_values",
    "extra_state_of_tensors",
    "frozen_batch_norm",
    "spectral_norm",
    "hook_that_masks_rows_of_a_gradient",
    "bfloat16",
    "double",
    "frozen_parameters",
]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return blobs(rows=80)


class StopsAfterSaving(Observer):
    def saved(self, steps: int) -> None:
        raise StopTraining


@contextmanager
def default_type(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("name", STATEFUL)
def test_resuming_goes_on_with_all_state(name: str, data: Dataset, tmp_path: Path) -> None:
    def train(run: str, model: nn.Sequential, **more: Any) -> dict[str, Any]:
        rest = {} if "resume" in more else sections(tmp_path / run)
        return everything(fit(model, data, **rest, **more).model)

    given = {"rule": "backprop", "blocks": ["2"]}
    whole = train("whole", made(name), **given)
    stopped = made(name)
    train("run", stopped, **given, observers=[StopsAfterSaving()])
    assert not stopped.training  # fit leaves all modules in evaluation mode
    again = stopped if name == "frozen_batch_norm" else made(name)
    assert_same(train("run", again, resume=tmp_path / "run"), whole)


def test_a_refused_or_failing_run_leaves_the_network_as_it_was(
    data: Dataset, tmp_path: Path
) -> None:
    class Fails(Observer):
        def stepped(self, step: int, metrics: Any) -> None:
            if step == 2:
                raise ZeroDivisionError

    model, untouched = made("frozen_batch_norm"), made("frozen_batch_norm")
    with pytest.raises(ZeroDivisionError):
        fit(model, data, blocks=["2"], observers=[Fails()], **sections(tmp_path / "run"))
    modes = [m.training for m in model.modules()]
    assert modes == [m.training for m in untouched.modules()] and not all(modes)
    assert_same(everything(model.eval()), everything(untouched.eval()))


def test_the_end_of_a_run_is_told_apart_from_what_was_frozen(data: Dataset, tmp_path: Path) -> None:
    """Frozen then and learning now: the optimizer's state would be of other parameters."""
    fit(
        made("frozen_parameters"),
        data,
        blocks=["2"],
        observers=[StopsAfterSaving()],
        **sections(tmp_path / "run"),
    )
    with pytest.raises(UserError, match=r"0\.weight learns in this network and is frozen in"):
        fit(made("plain"), data, resume=tmp_path / "run")


NETWORK = """
import torch
from tests.blocklocal.module_kinds import Averaging, net


def make():
    return net(Averaging(False)).double()
"""


def test_eval_has_hidden_buffers_and_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from blocklocal import cli

    (tmp_path / "hidden_network.py").write_text(NETWORK, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    x, y = blobs(rows=80).train.x, blobs(rows=80).train.y
    import numpy as np

    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:20], y_test=y[:20])
    words = [
        f"run.directory={tmp_path / 'run'}",
        "network.kind=custom",
        "network.factory=hidden_network:make",
        "data.kind=arrays",
        f"data.path={tmp_path / 'data.npz'}",
        "blocks.at=['2']",
        "training.batch=8",
        "training.steps=6",
        "engine.kind=sequential",
        "engine.resources.threads=1",
        "tracking.enabled=false",
    ]
    assert cli.main(["train", *words]) == 0
    run = RunDirectory.open(tmp_path / "run")
    config, dataset, trained = load_run(run, 6)
    model = trained.model
    assert model[2].mean.dtype == torch.float64 and model[2].mean.abs().sum() > 0
    _, accuracy = evaluate_model(model, dataset, "test", config)
    told = [r for r in run.read_metrics() if r["split"] == "test"][-1]
    assert accuracy == pytest.approx(told["block2/accuracy"])


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_fit_where_gradients_are_off(context: Any, data: Dataset, tmp_path: Path) -> None:
    outside = fit(made("plain"), data, blocks=["2"], **sections(tmp_path / "outside"))
    model = made("plain")
    with context():
        inside = fit(model, data, blocks=["2"], **sections(tmp_path / "inside"))
    assert_same(everything(inside.model), everything(outside.model))


RULES = ["local", "bll", "reconcile", "overlapping", "dfa", "drtp", "predsim"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["double", "bfloat16", "mixed_types"])
def test_blocks_of_other_types_learn_under_rules_with_heads(
    rule: str, name: str, data: Dataset, tmp_path: Path
) -> None:
    model, before = made(name), made(name)
    fit(model, data, rule=rule, blocks=["2"], **sections(tmp_path / "run"))
    kinds = {n: t.dtype for n, t in before.state_dict().items()}
    after = model.state_dict()
    assert {n: t.dtype for n, t in after.items()} == kinds
    assert all(not torch.equal(after[n], t) for n, t in before.state_dict().items() if t.dim() > 1)


@pytest.mark.parametrize("name", ["integers_at_the_cut", "complex_numbers_at_the_cut"])
@pytest.mark.parametrize("rule", ["local", "bll", "reconcile"])
def test_no_loss_is_formed_of_integers(rule: str, name: str, data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"block 1 gives torch\.\w+, of which no loss"):
        fit(KINDS[name](), data, rule=rule, blocks=["2"], **sections(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("codec", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("name", ["double", "bfloat16", "integers_at_the_cut"])
def test_codes_are_read_in_the_type_of_the_block(
    codec: str, name: str, data: Dataset, tmp_path: Path
) -> None:
    more = {**sections(tmp_path / "run"), "codec": {"kind": codec}}
    fit(made(name), data, rule="backprop", blocks=["2"], **more)


@pytest.mark.parametrize("rule", ["backprop", "bll"])
def test_a_default_type_of_float64(
    rule: str, data: Dataset, tmp_path: Path, ray_cluster: None
) -> None:
    results = []
    with default_type(torch.float64):
        for engine in ("sequential", "ray"):
            # A unit that makes a tensor without saying of which type.
            unit = Apply(lambda x: x * torch.tensor([0.1]))
            torch.manual_seed(0)
            model = net(unit)
            more = sections(tmp_path / engine, engine=engine)
            results.append(everything(fit(model, data, rule=rule, blocks=["2"], **more).model))
    assert results[0]["0.weight"].dtype == torch.float64
    assert_same(*results)


def test_what_actors_are_not_under_is_refused(data: Dataset, tmp_path: Path) -> None:
    def train() -> None:
        fit(made("plain"), data, blocks=["2"], **sections(tmp_path / "run"))

    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(UserError, match=r"under torch.autocast.*precision.compute = bfloat16"),
    ):
        train()
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match="a hook on all modules is registered"):
        train()
    handle.remove()
    with torch.autograd.detect_anomaly(), pytest.raises(UserError, match="set_detect_anomaly"):
        train()
    with torch.device("meta"), pytest.raises(UserError, match="set_default_device"):
        fit(net(), data, blocks=["2"], **sections(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    train()


def test_float64_keeps_imaginary_parts(data: Dataset, tmp_path: Path) -> None:
    """Complex128 has no place in a checkpoint: that is one sentence, not lost numbers."""
    more = {**sections(tmp_path / "run"), "precision": {"compute": "float64"}}
    with pytest.raises(UserError, match=r"2\.turns is of type torch\.complex128|3\.turns"):
        fit(made("complex_buffer"), data, rule="backprop", blocks=["2"], **more)


def test_hooks_and_fused_updates(data: Dataset, tmp_path: Path) -> None:
    more = {**sections(tmp_path / "run"), "update": {"fused": True}}
    with pytest.raises(UserError, match=r"0\.weight has a hook.*update.fused = false"):
        model = made("hook_that_masks_rows_of_a_gradient")
        fit(model, data, rule="backprop", blocks=["2"], **more)
