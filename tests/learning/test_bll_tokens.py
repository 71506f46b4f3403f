"""BLL on tokens, one label each or one a row, and labels that compete only within a batch."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from learning.errors import UserError
from learning.learners.feedback import FeedbackSettings
from learning.objectives.base import Bootstrap, Evidence, Told
from learning.objectives.latents import LatentKind, make_family
from learning.objectives.readout import LatentSettings, Readout
from learning.objectives.tables import EvidenceLoss
from learning.rules import BLL
from learning.rules.bll import BootstrapSettings
from learning.sequential import SequentialEngine
from tests.learning.helpers import gradients_of, mlp, model_state, shards_of, train
from tests.learning.local_rules import assert_goes_on, assessed, engine_of, random, tokens_of

RAW = LatentSettings(normalization="none", temperature=0.7)
Y = torch.arange(20).view(4, 5) % 3
TOKENS = {"shape": (5, 4), "target_shape": (5,)}
KINDS: list[LatentKind] = ["bernoulli", "gaussian", "gaussian-learned", "categorical"]


def table_of(kind: LatentKind, features: int, labels: int = 3) -> dict[str, Tensor]:
    family = make_family(kind, 2)
    units = features // 2 if kind == "categorical" else features
    return {
        "b": family.feedback(random(labels, units, family.parameters, seed=1)),
        "c": random(labels, seed=2),
    }


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_are_samples_and_a_row_counts_their_mean(kind: LatentKind):
    latent = LatentSettings(kind=kind, states=2, temperature=0.7)
    per_token = Evidence(latent, (5, 4), per_token=True).double()
    flat = Evidence(latent, (4,)).double()
    h, table = random(4, 5, 4), table_of(kind, 4)
    mine, gradient = assessed(per_token, h, Told(Y, table))
    plain, wanted = assessed(flat, h.flatten(0, 1), Told(Y.flatten(), table))
    torch.testing.assert_close(mine.loss, plain.loss / 5)
    torch.testing.assert_close(gradient.flatten(0, 1), wanted / 5)
    torch.testing.assert_close(mine.scores, plain.scores.view(4, 5, 3))
    assert mine.readout is not None and plain.readout is not None
    assert torch.equal(mine.readout["a"], plain.readout["a"])
    assert torch.equal(mine.readout["y"], Y)


def test_unit_gaussians_of_tokens_by_hand():
    """The linear classifier with rows temperature * b, by hand."""
    table = table_of("gaussian", 4)
    b, c = table["b"][..., 0], table["c"]
    h = random(4, 5, 4)
    mine, gradient = assessed(Evidence(RAW, (5, 4), per_token=True).double(), h, Told(Y, table))
    h = h.requires_grad_()
    scores = 0.7 * h @ b.T + c + 0.35 * b.square().sum(-1)
    expected = 4 * F.cross_entropy(scores.flatten(0, 1), Y.flatten())
    torch.testing.assert_close(mine.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, h)[0])


def test_with_one_label_a_row_the_mean_of_its_tokens_is_read():
    table, h, y = table_of("gaussian", 4), random(4, 5, 4), Y[:, 0]
    mine, gradient = assessed(Evidence(RAW, (5, 4)).double(), h, Told(y, table))
    plain, wanted = assessed(Evidence(RAW, (4,)).double(), h.mean(1), Told(y, table))
    torch.testing.assert_close(mine.loss, plain.loss)
    torch.testing.assert_close(gradient, (wanted / 5)[:, None].expand_as(gradient))


def gradients_of_feedback(engine: SequentialEngine, shard_of) -> dict[str, Tensor]:
    got: dict[str, Tensor] = {}
    engine.feedback[1].updater.observer = lambda g: got.update({n: t.clone() for n, t in g.items()})
    gradients_of(engine, 0, shard_of)
    return got


def test_the_feedback_module_counts_tokens_the_same_way():
    """Its gradient is that of the block's loss, in lockstep, with respect to the table."""
    rule = BLL(latent=RAW, feedback=FeedbackSettings(kind="direct", delay=0))
    engine = engine_of(rule, **TOKENS)
    x, y = tokens_of()(0, 0)
    module, block = engine.feedback[1].module, copy.deepcopy(engine.blocks[0])
    h = block.chain(x).detach()
    rows = module(None)[..., 0]
    scores = module.bias + 0.7 * (h @ rows.T + rows.square().sum(-1) / 2)
    loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
    weight, bias = torch.autograd.grad(loss, (module.layers[0].weight, module.bias))
    got = gradients_of_feedback(engine, tokens_of())
    torch.testing.assert_close(got["layers.0.weight"], weight)
    torch.testing.assert_close(got["bias"], bias)


@pytest.mark.parametrize("kind", KINDS)
def test_shards_change_nothing_but_rounding(kind: LatentKind):
    rule = BLL(latent=LatentSettings(kind=kind, states=2, normalization="none"))
    states = []
    for shards in (1, 4):
        engine = engine_of(rule, **TOKENS, shards=shards)
        train(engine, range(4), tokens_of(shards))
        states.append(model_state(engine))
    for name, tensor in states[0].items():
        torch.testing.assert_close(tensor, states[1][name], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["gaussian", "bernoulli", "categorical"])
def test_posteriors_of_tokens(kind: LatentKind):
    settings = LatentSettings(kind=kind, states=2, normalization="none")
    h, table = random(4, 5, 4), table_of(kind, 4)
    for y, per_token in ((Y, True), (Y[:, 0], False)):
        readout = Readout(settings, (5, 4), per_token=per_token)
        moved = readout.posterior(h, table["b"][y.flatten()])
        shift = table["b"][y].flatten(-2)
        torch.testing.assert_close(moved, h + (shift if per_token else shift[:, None]))
        torch.testing.assert_close(readout(moved), readout(h) + table["b"][y.flatten()])


def test_rows_of_tokens_go_on_whole():
    h, table = random(400, 5, 4), table_of("gaussian", 4)
    y = torch.arange(2000).view(400, 5) % 3
    objective = Evidence(RAW, (5, 4), Bootstrap(0.5, 10), per_token=True)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        on = objective.send_on(h, y, table, 0)
    changed = (on != h).flatten(1)
    assert torch.equal(changed.all(1), changed.any(1))
    assert 0.4 < changed.all(1).double().mean() < 0.6


def test_labels_of_tokens_need_tokens():
    for shape in ((4,), (3, 2, 2)):
        with pytest.raises(UserError, match=r"one label a token this rule reads activations of"):
            Readout(RAW, shape, per_token=True)


# --- candidates -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_absent_labels_do_not_compete(kind: LatentKind):
    """The loss is that of a table without their rows; they have no gradient; scores keep them."""
    family, y = make_family(kind, 2), torch.tensor([0, 3, 0, 3, 3])
    table = {n: t.requires_grad_() for n, t in table_of(kind, 4, labels=5).items()}
    a = family.feedback(random(5, table["b"].shape[1], family.parameters, seed=5))
    loss, scores = EvidenceLoss(family, 0.7, "batch")(a, table, y)
    small = {n: t.detach()[[0, 3]] for n, t in table.items()}
    expected, _ = EvidenceLoss(family, 0.7)(a, small, torch.tensor([0, 1, 0, 1, 1]))
    torch.testing.assert_close(loss, expected)
    for gradient in torch.autograd.grad(loss, list(table.values())):
        assert not gradient[[1, 2, 4]].any() and gradient[[0, 3]].abs().sum() > 0
    everyone = EvidenceLoss(family, 0.7)(a, table, y)
    torch.testing.assert_close(scores, everyone[1])
    # Evaluation is over all labels.
    torch.testing.assert_close(EvidenceLoss(family, 0.7, "batch").eval()(a, table, y), everyone)


def test_where_all_labels_are_there_candidates_do_not_matter():
    states = []
    for candidates in ("all", "batch"):
        engine = engine_of(BLL(candidates=candidates))
        train(engine, range(4), lambda step, i: (shards_of()(step, i)[0], torch.arange(8) % 3))
        states.append(model_state(engine))
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name


def test_the_feedback_module_has_the_same_candidates():
    """Labels 1 and 2 alone: the row of label 0 stays."""
    rule = BLL(feedback=FeedbackSettings(kind="direct"), candidates="batch")
    engine = engine_of(rule)
    x, y = shards_of()(0, 0)
    rows = engine.feedback[1].module.layers[0].weight.detach().clone()
    train(engine, range(1), lambda step, shard: (x, 1 + y % 2))
    after = engine.feedback[1].module.layers[0].weight
    assert torch.equal(after[:, 0], rows[:, 0]) and not torch.equal(after[:, 1], rows[:, 1])


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_state_goes_on(share):
    rule = BLL(
        latent=LatentSettings(kind="gaussian-learned"),
        feedback=FeedbackSettings(hidden=5),
        bootstrap=BootstrapSettings(share=share),
        candidates="batch",
    )
    # One seed for both runs: it also decides which rows go on from the posterior.
    assert_goes_on(lambda seed: engine_of(rule, mlp(seed), **TOKENS), tokens_of())
