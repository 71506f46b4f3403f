"""Transformers whose stream stays in a subspace: they train the same with the codec as without."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from learning.networks import GPTSettings, build_network
from learning.objectives.readout import LatentSettings
from learning.policies.subspace import basis, rank_of, table
from learning.rules import (
    BLL,
    Alignment,
    Backprop,
    DelayedGradients,
    DirectAlignment,
    Interlocking,
    Local,
    Reconciliation,
    ReplayedLocal,
    Rule,
)
from learning.rules.bll import BootstrapSettings
from learning.sequential import SequentialEngine
from learning.settings import (
    AdamWSettings,
    Float32CodecSettings,
    PrecisionSettings,
    SGDSettings,
    SubspaceCodecSettings,
    UpdateSettings,
)
from learning.units import split, units_of
from tests.learning.helpers import (
    assert_same_state,
    learner_settings,
    model_state,
    posts_of,
    snapshot,
    train,
)

BATCH, T, V, WIDTH, RANK = 8, 6, 7, 32, 4
GPT = GPTSettings(width=WIDTH, depth=3, heads=2, positions="learned", subspace=RANK)
PLAIN, CODED = Float32CodecSettings(), SubspaceCodecSettings()
SGD, ADAMW = SGDSettings(lr=0.1), AdamWSettings(lr=0.01)


def network(settings: GPTSettings = GPT) -> nn.Sequential:
    model = build_network(settings, (T,), V, 0, tokens=True)
    assert isinstance(model, nn.Sequential)
    return model


def program_of(rule: Rule, settings: GPTSettings = GPT, **more: Any) -> Program:
    options = learner_settings(batch=BATCH, **{"optimizer": SGD, "steps": 100, **more})
    shapes = ((T, WIDTH), (T, WIDTH), (T, V))
    return Program(rule, options, shapes, V, (T,), (T,), rank_of(network(settings)))


def blocks_of(settings: GPTSettings = GPT):
    return split(units_of(network(settings)), ["block2", "block3"])


def engine_of(rule: Rule, settings: GPTSettings = GPT, **more: Any) -> SequentialEngine:
    """Three blocks; the first holds the embedding, the last the head."""
    return SequentialEngine(program_of(rule, settings, **more), blocks_of(settings))


def rows_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(V, (BATCH, T), generator=generator)
    return tokens, (tokens + 1) % V


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        (Local(), SGD),
        (Local(), ADAMW),
        (ReplayedLocal(buffer=2), ADAMW),
        (Backprop(), SGD),
        (Interlocking(), SGD),
        (DelayedGradients(), SGD),
        (DelayedGradients(stash="inputs"), SGD),
    ],
)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_training_is_that_without_codec_up_to_rounding(rule, optimizer, positions) -> None:
    """The network stays in the subspace either way: what the codec leaves out is not there.

    Plain steps are linear in the gradient, so the part of it that the codec leaves out is what
    the projection takes away. AdamW's are not; where no gradients travel it makes no difference.
    """
    settings = GPT.model_copy(update={"positions": positions})
    engines = [engine_of(rule, settings, codec=c, optimizer=optimizer) for c in (PLAIN, CODED)]
    histories = [train(engine, range(12), rows_of) for engine in engines]
    left, right = (model_state(engine) for engine in engines)
    start = model_state(engine_of(rule, settings))
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=0, atol=1e-12)
        assert name == "embed.fixed.table" or not torch.equal(tensor, start[name]), name
    for one, other in zip(*histories, strict=True):
        assert one["block3"]["loss"] == pytest.approx(other["block3"]["loss"], rel=1e-11)


@pytest.mark.parametrize("rule", [Local(), Backprop()])
def test_it_learns(rule: Rule) -> None:
    engine = engine_of(rule, codec=CODED, optimizer=ADAMW, precision=PrecisionSettings())
    history = train(engine, range(80), rows_of)
    assert history[0]["block3"]["loss"] > 1.8
    assert history[-1]["block3"]["loss"] < 0.2


@pytest.mark.parametrize("rule", [Local(), Backprop()])
def test_bytes_shrink_by_width_over_rank(rule: Rule) -> None:
    """But for the tokens, of eight bytes each."""
    sizes = []
    for codec in (PLAIN, CODED):
        posts = posts_of(engine_of(rule, codec=codec), 0, rows_of)
        sizes.append(
            {
                what: sum(
                    t.nbytes
                    for p in posts
                    for n, t in p.message.items()
                    if p.key.what == what and n in ("x", "gradient")
                )
                for what in ("x", "g")
            }
        )
        tokens = [p.message["x.tokens"] for p in posts if "x.tokens" in p.message]
        assert len(tokens) == (2 if codec is CODED else 0)
        assert all(torch.equal(t, rows_of(0, 0)[0]) for t in tokens)
    assert sizes[0]["x"] == 2 * BATCH * T * WIDTH * 8  # two boundaries in float64
    for what in ("x", "g"):
        assert sizes[1][what] * WIDTH == sizes[0][what] * RANK
    assert (sizes[0]["g"] > 0) is (rule == Backprop())


UPDATES = [UpdateSettings(), UpdateSettings(fused=True), UpdateSettings(proximal=0.5)]


@pytest.mark.parametrize("update", UPDATES, ids=["plain", "fused", "proximal"])
@pytest.mark.parametrize(
    "rule", [Local(), Backprop(), DelayedGradients(), DelayedGradients(stash="inputs")]
)
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_the_stream_stays_in_the_subspace(rule: Rule, update: UpdateSettings, precision) -> None:
    """At the start and after every update: h - E[tokens] has nothing outside the span of U."""
    engine = engine_of(
        rule,
        codec=CODED,
        optimizer=ADAMW,
        update=update,
        precision=PrecisionSettings(compute=precision),
    )
    dtype = engine.blocks[0].numerics.dtype
    u, fixed = basis(WIDTH, RANK).to(dtype), table(WIDTH, V).to(dtype)
    tokens, _ = rows_of(9, 0)
    for step in range(4):
        h = tokens
        for block in engine.blocks:
            for unit in list(block.chain.units)[: None if block.index < 3 else -1]:
                with torch.no_grad():
                    h = unit(h)
                rest = h - fixed[tokens]
                outside = (rest - rest @ u @ u.T).abs().max()
                assert outside <= 20 * torch.finfo(dtype).eps * rest.abs().max()
        engine.train_step(step, rows_of)


def test_a_step_without_gradients_changes_nothing() -> None:
    """A projection is not repeated: it would change last bits."""
    engine = engine_of(DelayedGradients(), codec=CODED, precision=PrecisionSettings())
    before = snapshot(engine)["block1"]
    train(engine, range(2), rows_of)
    after = snapshot(engine)["block1"]
    assert all(torch.equal(after[n], t) for n, t in before.items())


@pytest.mark.parametrize(
    "rule",
    [
        Local(),
        Backprop(),
        ReplayedLocal(buffer=3),
        DelayedGradients(lag=2),
        DelayedGradients(stash="inputs"),
        Alignment(),
    ],
)
def test_resuming_half_way_ends_with_the_same_bits(rule: Rule) -> None:
    options = {"codec": CODED, "optimizer": ADAMW, "precision": PrecisionSettings()}
    whole, resumed = (engine_of(rule, **options) for _ in range(2))
    train(whole, range(6), rows_of)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()), 6)
    for engine in (whole, resumed):
        train(engine, range(6, 10), rows_of)
    assert_same_state(snapshot(whole), snapshot(resumed))


def test_saved_weights_are_all_of_the_network() -> None:
    engine = engine_of(Local(), codec=CODED, optimizer=ADAMW)
    train(engine, range(3), rows_of)
    other = network(GPT.model_copy(update={"subspace": 9})).double()  # its rank does not matter
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.zero_()
    other.load_state_dict(model_state(engine))
    tokens, _ = rows_of(5, 0)
    expected = tokens
    for block in engine.blocks:
        expected = block.chain(expected)
    assert torch.equal(other(tokens), expected)


def test_the_fixed_table_is_no_parameter() -> None:
    model, plain = network(), network(GPT.model_copy(update={"subspace": None}))
    assert torch.equal(model.state_dict()["embed.fixed.table"], table(WIDTH, V))
    assert sorted(n for n, _ in model.named_parameters()) == sorted(
        n for n, _ in plain.named_parameters()
    )
    assert set(model.state_dict()) - set(plain.state_dict()) == {"embed.fixed.table"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"subspace": 33}, r"network.subspace = 33 is above network.width = 32: .* up to 32"),
        ({"dropout": 0.1}, r"network.dropout = 0.1 .* set network.dropout = 0 or network.subspace"),
        ({"tied": True}, r"network.tied = true .* set network.tied = false or network.subspace"),
    ],
)
def test_networks_that_would_leave_it_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        network(GPT.model_copy(update=changes))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (Reconciliation(), r"compares whole gradients: use codec.kind = bfloat16"),
        (DirectAlignment(), r"sends errors of scores: use codec.kind = bfloat16"),
        (
            BLL(latent=LatentSettings(), bootstrap=BootstrapSettings(share=0.5)),
            r"rule.bootstrap.share = 0.5 sends on posteriors: use",
        ),
    ],
)
def test_rules_that_send_other_things_are_refused(rule: Rule, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_program(program_of(rule, codec=CODED), blocks_of(), rows_of(0, 0)[0])


def test_a_codec_without_its_network_is_refused() -> None:
    plain = GPT.model_copy(update={"subspace": None})
    program = program_of(Local(), plain, codec=CODED)
    with pytest.raises(UserError, match=r"set network.subspace to its rank"):
        check_program(program, blocks_of(plain), rows_of(0, 0)[0])
    check_program(replace(program, subspace=RANK), blocks_of(), rows_of(0, 0)[0])


def test_any_module_may_be_constrained() -> None:
    """A user's unit with `constrain_()`: called at the start and after every update."""

    class Clamped(nn.Linear):
        calls = 0

        def constrain_(self) -> None:
            self.calls += 1
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)

    torch.manual_seed(0)
    model = nn.Sequential(nn.Sequential(Clamped(4, 6), nn.Tanh()), nn.Linear(6, 3))
    blocks = split(units_of(model), ["1"])
    program = Program(Local(), learner_settings(batch=BATCH), ((6,), (3,)), 3)
    engine = SequentialEngine(program, blocks)
    clamped = blocks[0][0].module
    assert isinstance(clamped, Clamped) and clamped.calls == 1
    x, y = torch.randn(BATCH, 4, dtype=torch.float64), torch.arange(BATCH) % 3
    train(engine, range(3), lambda step, shard: (x, y))
    assert clamped.calls == 4 and clamped.weight.abs().max() <= 0.1
