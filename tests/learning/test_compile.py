"""Compiled blocks: the bits of each engine, close to the units as written, refused where wrong."""

from __future__ import annotations

import copy
import shutil
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.policies.compiled import make_runner, own_code
from learning.rules import (
    BLL,
    Backprop,
    DelayedGradients,
    Interlocking,
    Local,
    Overlapping,
    PeriodicGuidance,
    Reconciliation,
    Rule,
)
from learning.settings import PrecisionSettings, SGDSettings, UpdateSettings
from learning.units import Chain, Unit, split, units_of
from tests.learning.helpers import (
    assert_same_bits,
    assert_same_state,
    batch_of,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    shards_of,
    snapshot,
    train,
)

INDUCTOR = PrecisionSettings(compute="float64", compile="inductor")
GRAPHS = PrecisionSettings(compute="float64", compile="cuda-graphs")
AT, SHAPES = ["1.0", "2.0"], ((6,), (6,), (3,))

needs_a_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")


class Branching(nn.Module):
    """Control flow that depends on values."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Noise(nn.Module):
    """Draws random numbers, and is none of torch's own dropouts."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (1 + torch.rand_like(x))


def check(
    rule: Rule, precision: PrecisionSettings, model: nn.Sequential | None = None, **settings: Any
) -> None:
    learner = learner_settings(**{"batch": 8, **settings, "precision": precision})
    blocks = split(units_of(model or mlp(0, norm=True)), AT)
    x = torch.zeros(8 // learner.shards, 4, dtype=torch.float64)
    check_program(Program(rule, learner, SHAPES, 3), blocks, x)


def with_unit(group: int, unit: nn.Module) -> nn.Sequential:
    model = mlp(0)
    layers = model[group]
    assert isinstance(layers, nn.Sequential)
    layers.append(unit)
    return model


BOTH = [
    (Reconciliation(), {}, r"this rule does it twice: use another rule.kind or precision.compile"),
    (DelayedGradients(), {}, r"with those it keeps: use another rule.kind"),
    (DelayedGradients(stash="inputs"), {}, r"with those it keeps: use another rule.kind"),
    (Interlocking(reach=2), {}, r"those of 2 losses reach a block: use another rule.kind"),
    (Overlapping(), {}, r"those of 2 losses reach a block"),
    (
        Local(),
        {"update": UpdateSettings(proximal=0.5)},
        r"proximal = 0.5 .*: use update.proximal = null",
    ),
    (Local(), {"update": UpdateSettings(fused=True)}, r"use update.fused = false"),
]
ONLY_GRAPHS = [
    (Local(), {"shards": 2}, r"training.shards = 2: use training.shards = 1"),
    (PeriodicGuidance(period=3), {}, r"under this rule steps differ: use another rule.kind"),
]


@pytest.mark.parametrize("precision", [INDUCTOR, GRAPHS], ids=lambda p: p.compile)
@pytest.mark.parametrize(("rule", "settings", "sentence"), BOTH)
def test_what_cannot_be_compiled_is_refused(
    rule: Rule, settings: dict[str, Any], sentence: str, precision: PrecisionSettings
) -> None:
    with pytest.raises(UserError, match=f"^precision.compile = {precision.compile} .*{sentence}"):
        check(rule, precision, **settings)
    check(rule, PrecisionSettings(compute="float64"), **settings)


@pytest.mark.parametrize(("rule", "settings", "sentence"), ONLY_GRAPHS)
def test_what_cannot_be_recorded_is_refused(
    rule: Rule, settings: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        check(rule, GRAPHS, **settings)
    check(rule, INDUCTOR, **settings)


@pytest.mark.parametrize("precision", [INDUCTOR, GRAPHS], ids=lambda p: p.compile)
@pytest.mark.parametrize("rule", [Local(), Backprop(), BLL(), DelayedGradients(lag=0)])
def test_what_is_right_is_let_through(rule: Rule, precision: PrecisionSettings) -> None:
    check(rule, precision)


@pytest.mark.parametrize("precision", [INDUCTOR, GRAPHS], ids=lambda p: p.compile)
def test_control_flow_that_depends_on_values_is_refused(precision: PrecisionSettings) -> None:
    model = with_unit(1, Branching())
    with pytest.raises(UserError, match=r"^block 2 cannot be compiled .*compile = none$"):
        check(Local(), precision, model)
    check(Local(), PrecisionSettings(compute="float64"), model)


@pytest.mark.parametrize("drawing", [nn.Dropout(0.1), Noise()], ids=["dropout", "own"])
def test_random_numbers_are_refused_in_graphs_only(drawing: nn.Module) -> None:
    model = with_unit(2, drawing)
    before = torch.random.get_rng_state()
    check(Local(), INDUCTOR, model)
    with pytest.raises(UserError, match=r"block 3 draws random numbers: set network.dropout = 0"):
        check(Local(), GRAPHS, model)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_graphs_on_the_cpu_are_refused_when_they_run() -> None:
    settings = learner_settings(precision=GRAPHS, batch=8)
    x, _ = batch_of(0)
    engine = make_engine(Local(), mlp(0), AT, x=x, settings=settings)
    with pytest.raises(UserError, match=r"block 1 computes on the CPU: set engine.kind = ray with"):
        train(engine, range(1), shards_of())


def test_uncompiled_blocks_run_their_chain_itself() -> None:
    chain = Chain(units_of(mlp(0)))
    assert make_runner(chain, PrecisionSettings(), 1) is chain


def test_more_blocks_than_torch_compiles_of_one_function() -> None:
    """Each block has its own code object: torch.compile gives up on the ninth of one."""
    x = torch.randn(2, 3)
    for i in range(1, 11):
        chain = Chain([Unit(str(j), nn.Tanh()) for j in range(i)])
        run = torch.compile(own_code(chain), backend="eager", fullgraph=True)
        assert torch.equal(run(x), chain(x))


@needs_a_compiler
@pytest.mark.parametrize("rule", [Local(), Backprop(order="gpipe")])
def test_compiled_is_close_to_the_units_as_written(rule: Rule) -> None:
    """Over some steps with batch norm and two shards; names of states are those of the modules."""
    states, metrics = [], []
    for precision in (PrecisionSettings(compute="float64"), INDUCTOR, INDUCTOR):
        settings = learner_settings(
            precision=precision, batch=8, shards=2, optimizer=SGDSettings(lr=0.1)
        )
        x, _ = batch_of(0)
        engine = make_engine(rule, mlp(0, norm=True), AT, x=x, settings=settings)
        metrics.append(train(engine, range(4), shards_of(2)))
        states.append(snapshot(engine))
    eager, compiled, again = states
    assert_same_state(compiled, again)
    assert metrics[1] == metrics[2]
    assert {k: sorted(s) for k, s in eager.items()} == {k: sorted(s) for k, s in compiled.items()}
    for name, state in eager.items():
        for key, tensor in state.items():
            torch.testing.assert_close(compiled[name][key], tensor, rtol=1e-9, atol=1e-11)


@needs_a_compiler
def test_evaluation_runs_the_units_as_they_are() -> None:
    """So batches of any size need no compiling, and saved weights give the reported numbers."""
    results = []
    for precision in (PrecisionSettings(compute="float64"), INDUCTOR):
        settings = learner_settings(precision=precision, batch=8)
        x, _ = batch_of(0)
        engine = make_engine(Local(), mlp(0), AT, x=x, settings=settings)
        batches = [batch_of(1, batch=n) for n in (8, 3, 5)]
        results.append(engine.evaluate(0, "test", iter(batches)))
    assert results[0] == results[1]


@needs_a_compiler
def test_compiled_training_resumes_bit_for_bit() -> None:
    settings = learner_settings(precision=INDUCTOR, batch=8, optimizer=SGDSettings(lr=0.1))
    x, _ = batch_of(0)
    model = mlp(0, norm=True, dropout=0.3)
    whole, first, second = (
        make_engine(Local(), copy.deepcopy(model), AT, x=x, settings=settings) for _ in range(3)
    )
    train(whole, range(4), shards_of())
    train(first, range(2), shards_of())
    second.load_state_dict(snapshot(first), 2)
    train(second, range(2, 4), shards_of())
    assert_same_bits(model_state(second), model_state(whole))
