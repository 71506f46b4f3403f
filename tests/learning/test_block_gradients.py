"""What each rule does to the weights: by hand on scalars, and bit for bit against autograd."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.build import Program
from learning.credit import END_TO_END, LOCAL, Hop
from learning.errors import NonFiniteLossError, UserError
from learning.learners.block import BlockLearner
from learning.learners.feedback import FeedbackSettings
from learning.objectives.base import TaskLoss
from learning.objectives.latents import LatentKind
from learning.objectives.readout import LatentSettings
from learning.rules import BLL, Backprop, Local, Rule
from learning.sequential import SequentialEngine
from learning.settings import SGDSettings
from learning.units import units_of
from tests.learning.helpers import (
    Hops,
    assert_close,
    assert_same_bits,
    batch_of,
    convnet,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    shards_of,
    snapshot,
    train,
)

LN3 = math.log(3)
MOMENTUM = SGDSettings(lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01)


def linear(weight: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weight[0]), len(weight), bias=False)
    layer.weight.data = torch.tensor(weight)
    return layer.double()


def scalar_engine(rule: Rule, w: float, v: list[list[float]]) -> SequentialEngine:
    """x (1) times w to h (1), times v to 2 scores: one block each; float64, plain SGD of rate 1."""
    units = units_of(nn.Sequential(linear([[w]]), linear(v)))
    program = Program(rule, learner_settings(batch=1), ((1,), (2,)), 2)
    return SequentialEngine(program, [units[:1], units[1:]])


def one_sample(step: int, shard: int) -> tuple[Tensor, Tensor]:
    return torch.tensor([[2.0]]).double(), torch.tensor([0])


def moved(engine: SequentialEngine, w: float, v: list[list[float]]) -> tuple[float, list[float]]:
    """The gradients of the task: minus the change of w and v in one step."""
    engine.train_step(0, one_sample)
    state = model_state(engine)
    change = torch.tensor(v).double() - state["1.weight"]
    return w - state["0.weight"].item(), change.flatten().tolist()


def set_auxiliary(engine: SequentialEngine) -> None:
    head = engine.blocks[0].objective.head.linear
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [LN3 / 6]]))
        head.weight[1] = LN3 / 6
        head.bias.zero_()


# h = 3 * 2 = 6, scores (ln 3, 0), probabilities (3/4, 1/4), error (-1/4, 1/4) for label 0.
W, V = 3.0, [[LN3 / 6], [0.0]]
TASK_V = [-0.25 * 6, 0.25 * 6]
TASK_W = -0.25 * LN3 / 6 * 2
# The auxiliary scores are (0, ln 3): probabilities (1/4, 3/4), error (-3/4, 3/4).
AUX_W = 0.75 * LN3 / 6 * 2


@pytest.mark.parametrize(
    ("rule", "to_w", "factor"),
    [
        (Backprop(), TASK_W, 1),
        (Local(), AUX_W, 1),
        (Hops(weights={1: 1}), TASK_W, 1),
        (Hops(weights={0: 1, 1: 1}), AUX_W + TASK_W, 1),
        (Hops(weights={0: 0.5, 1: 0.25}), 0.5 * AUX_W + 0.25 * TASK_W, 0.5),
    ],
)
def test_gradients_by_hand(rule: Rule, to_w, factor):
    engine = scalar_engine(rule, W, V)
    if engine.blocks[0].objective is not None:
        set_auxiliary(engine)
    gradient_w, gradient_v = moved(engine, W, V)
    assert gradient_w == pytest.approx(to_w, rel=1e-6)
    assert gradient_v == pytest.approx([factor * g for g in TASK_V], rel=1e-6)
    if engine.blocks[0].objective is not None:  # error times h, and the error
        head = engine.blocks[0].objective.head.linear
        assert head.weight.flatten().tolist() == pytest.approx([4.5, LN3 / 6 - 4.5], rel=1e-6)
        assert head.bias.tolist() == pytest.approx([0.75, -0.75], rel=1e-6)


def test_block_local_learning_by_hand():
    # a = 2 * ln(3) / 4, b = (1, -1): scores a + 1/2 and -a + 1/2, probabilities (3/4, 1/4).
    latent = LatentSettings(normalization="none", temperature=1.0)
    rule = BLL(latent=latent, feedback=FeedbackSettings(kind="direct", delay=0))
    w, a = LN3 / 4, LN3 / 2
    engine = scalar_engine(rule, w, V)
    table = engine.feedback[1].module
    with torch.no_grad():
        table.layers[0].weight.copy_(torch.tensor([[1.0, -1.0]]))
    gradient_w, _ = moved(engine, w, V)
    assert gradient_w == pytest.approx((0.75 * 1 + 0.25 * -1 - 1) * 2, rel=1e-6)  # = -1
    expected = [1 + 0.25 * (a + 1), -1 - 0.25 * (a - 1)]
    assert table.layers[0].weight.flatten().tolist() == pytest.approx(expected, rel=1e-6)
    assert table.bias.tolist() == pytest.approx([0.25, -0.25], rel=1e-6)


def autograd(model: nn.Sequential, steps: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """Torch's own end-to-end training of the whole network."""
    model = copy.deepcopy(model).double()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.01
    )
    for step in range(steps):
        x, y = batch_of(step, shape=shape)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.state_dict()


NETWORKS = {
    "mlp": (mlp(0), ["1.0", "2"], (4,)),
    "mlp, batch norm": (mlp(0, norm=True), ["1.0", "2"], (4,)),
    "convolutions": (convnet(0, norm=False), ["1", "2"], (2, 4, 4)),
    "convolutions, batch norm": (convnet(0), ["1", "2"], (2, 4, 4)),
}


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", [Backprop(), Hops(weights={2: 1}), Hops(weights={5: 1})])
def test_end_to_end_equals_autograd_bit_for_bit(rule: Rule, network, steps):
    model, at, shape = NETWORKS[network]
    settings = learner_settings(batch=8, optimizer=MOMENTUM)
    engine = make_engine(rule, model, at, x=batch_of(0, shape=shape)[0], settings=settings)
    assert len(engine.blocks) == 3
    train(engine, range(steps), shards_of(shape=shape))
    assert_same_bits(model_state(engine), dict(autograd(model, steps, shape)))


@pytest.mark.parametrize("rule", [Local(), Hops(weights={1: 1}), BLL()])
def test_every_rule_with_one_block_is_backprop(rule: Rule):
    settings = learner_settings(batch=8, optimizer=MOMENTUM)
    engine = make_engine(rule, mlp(0), [], x=batch_of(0)[0], settings=settings)
    train(engine, range(3), shards_of())
    assert_same_bits(model_state(engine), dict(autograd(mlp(0), 3, (4,))))


def test_fewer_hops_than_blocks_are_not_backprop():
    engine = make_engine(
        Hops(weights={1: 1}),
        mlp(0),
        ["1.0", "2"],
        x=batch_of(0)[0],
        settings=learner_settings(batch=8, optimizer=MOMENTUM),
    )
    train(engine, range(1), shards_of())
    got, reference = model_state(engine), autograd(mlp(0), 1, (4,))
    assert not torch.equal(got["0.0.weight"], reference["0.0.weight"])
    assert torch.equal(got["1.0.weight"], reference["1.0.weight"])  # one hop from the end


LATENTS: tuple[LatentKind, ...] = ("bernoulli", "gaussian", "gaussian-learned", "categorical")
WITHOUT_BATCH_NORM = [
    Backprop(),
    Local(),
    Hops(weights={0: 1, 1: 0.5}),
    *(BLL(latent=LatentSettings(kind=k, states=3, normalization="none")) for k in LATENTS),
]


@pytest.mark.parametrize("rule", WITHOUT_BATCH_NORM)
def test_shards_change_nothing_but_rounding(rule: Rule):
    states = []
    for shards in (1, 2, 4):
        settings = learner_settings(batch=8, shards=shards, optimizer=SGDSettings(lr=0.1))
        engine = make_engine(rule, mlp(0), ["1.0", "2"], x=batch_of(0)[0], settings=settings)
        metrics = train(engine, range(3), shards_of(shards))
        state = {f"{a}.{b}": t for a, s in snapshot(engine).items() for b, t in s.items()}
        for name, values in metrics[-1].items():
            state |= {f"{name}.{k}": torch.tensor(v).double() for k, v in values.items()}
        states.append(state)
    assert_close(states[1], states[0])
    assert_close(states[2], states[0])


@pytest.mark.parametrize("rule", [Local(), Backprop()])
def test_a_block_that_starts_in_place_is_refused(rule: Rule):
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    engine = make_engine(rule, model, ["1"], x=batch_of(0)[0], settings=learner_settings(batch=8))
    with pytest.raises(UserError, match=r"block 2 changes its input in place.*unit '1'"):
        engine.train_step(0, shards_of())


def test_an_in_place_layer_inside_a_block_is_fine():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    settings = learner_settings(batch=8, optimizer=MOMENTUM)
    engine = make_engine(Backprop(), model, ["2"], x=batch_of(0)[0], settings=settings)
    train(engine, range(2), shards_of())
    assert_same_bits(model_state(engine), dict(autograd(model, 2, (4,))))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_leaves_the_weights_alone(value):
    units = units_of(nn.Sequential(nn.Linear(4, 3)))
    learner = BlockLearner(1, 1, units, TaskLoss(), LOCAL, learner_settings(batch=8))
    x, y = batch_of(0)
    x[3, 1] = value
    before = {name: t.clone() for name, t in learner.state_dict().items()}
    learner.forward(7, 0, {"x": x, "y": y})
    with pytest.raises(NonFiniteLossError, match=r"loss of block 1 is nan at step 7") as caught:
        learner.assess(7, 0)
    assert_same_bits(learner.state_dict(), before)
    error = pickle.loads(pickle.dumps(caught.value))
    assert str(error) == str(caught.value) and (error.block, error.step) == (1, 7)


def test_dropout_is_a_pure_function_of_seed_step_shard_and_block():
    def sent(index: int = 1, seed: int = 0, step: int = 3, shard: int = 0) -> Tensor:
        units = units_of(nn.Sequential(nn.Dropout(0.5)))
        learner = BlockLearner(index, 3, units, None, END_TO_END, learner_settings(seed=seed))
        torch.rand(seed + step)  # the global generator must not matter
        ones = torch.ones(4, 50, dtype=torch.float64)
        labels = torch.zeros(4, dtype=torch.long)
        (post,) = learner.forward(step, shard, {"x": ones, "y": labels})
        return post.message["x"]

    assert torch.equal(sent(), sent())
    assert 0.3 < (sent() == 0).double().mean() < 0.7
    others = [sent(index=2), sent(seed=1), sent(step=4), sent(shard=1)]
    assert not any(torch.equal(sent(), other) for other in others)


def test_training_leaves_the_global_generator_alone():
    settings = learner_settings(batch=8)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    engine = make_engine(BLL(), mlp(0, dropout=0.3), ["1.0"], x=batch_of(0)[0], settings=settings)
    train(engine, range(2), shards_of())
    assert torch.equal(torch.rand(3), expected)


def test_a_block_without_parameters_passes_gradients_on():
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    for rule in (Backprop(), Hops(weights={1: 1, 0: 1})):
        settings = learner_settings(batch=8, optimizer=MOMENTUM)
        engine = make_engine(rule, model, ["1", "2"], x=batch_of(0)[0], settings=settings)
        train(engine, range(2), shards_of())
        same = torch.equal(model_state(engine)["0.weight"], model[0].weight.double())
        assert not same
    hop = Hop({0: 1.0})
    assert hop.passed_back(2, 3) == ()


def test_a_module_in_evaluation_mode_is_trained_in_training_mode():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    engine = make_engine(
        Local(), model, ["2"], x=batch_of(0)[0], settings=learner_settings(batch=8)
    )
    train(engine, range(3), shards_of())
    assert model_state(engine)["1.num_batches_tracked"] == 3
