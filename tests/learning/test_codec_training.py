"""Codecs in learners: what travels, what is learned from it, and resuming half way."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from learning.data import AugmentSettings, Batches, DigitsSettings, load_dataset
from learning.learners.reconciling import gradient_distance
from learning.messages import Message, Post
from learning.policies.codecs import BFloat16, Codec, Float16, Int8
from learning.rules import (
    Backprop,
    DelayedGradients,
    DirectAlignment,
    Interlocking,
    Local,
    Reconciliation,
    ReplayedLocal,
    Rule,
)
from learning.sequential import SequentialEngine
from learning.settings import (
    AdamWSettings,
    BFloat16CodecSettings,
    CodecSettings,
    Float16CodecSettings,
    Float32CodecSettings,
    Int8CodecSettings,
    PrecisionSettings,
    SGDSettings,
)
from tests.learning.helpers import (
    DOUBLE,
    assert_close,
    assert_same_bits,
    assert_same_state,
    batch_of,
    convnet,
    gradients_of,
    learner_settings,
    make_engine,
    mlp,
    model_state,
    named_like,
    parts_of,
    posts_of,
    shards_of,
    snapshot,
    train,
)

INT8 = Int8CodecSettings()
LOSSY: list[tuple[CodecSettings, Codec]] = [
    (BFloat16CodecSettings(), BFloat16()),
    (Float16CodecSettings(), Float16()),
    (INT8, Int8()),
]
KINDS = [settings.kind for settings, _ in LOSSY]
IMAGES = (2, 4, 4)
CHANNELS_LAST = PrecisionSettings(memory_format="channels-last")


def engine_of(rule: Rule, codec: CodecSettings, **settings: Any) -> SequentialEngine:
    """Three blocks of a little network in float64."""
    options = learner_settings(batch=8, codec=codec, **{"optimizer": SGDSettings(), **settings})
    return make_engine(rule, mlp(0), ["1.0", "2.0"], x=batch_of(0)[0], settings=options)


def image_engine_of(rule: Rule, codec: CodecSettings, **settings: Any) -> SequentialEngine:
    """Three blocks of a little convolutional network in float32, channels last."""
    more = {"optimizer": AdamWSettings(), "precision": CHANNELS_LAST, **settings}
    options = learner_settings(batch=8, codec=codec, **more)
    x = torch.zeros(1, *IMAGES)
    return make_engine(rule, convnet(0), ["1", "2.1"], x=x, settings=options)


def images_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
    x, y = shards_of(shape=IMAGES)(step, shard)
    return x.float(), y


def only(posts: list[Post], what: str, to: str) -> Message:
    (found,) = [p.message for p in posts if p.key.what == what and p.to == to]
    return found


def size_of(message: Message, name: str) -> int:
    """The bytes of a tensor of a message, coded."""
    return sum(t.nbytes for n, t in message.items() if n.split(".")[0] == name)


@pytest.mark.parametrize("compute", ["float32", "float64", "bfloat16"])
def test_float32_changes_no_bit(compute: Any) -> None:
    """What travels is the block's output, in its own type: also that of the gradient."""
    precision = PrecisionSettings(compute=compute)
    engine = engine_of(Backprop(), Float32CodecSettings(), precision=precision)
    outputs: list[Tensor] = []
    for block in engine.blocks:
        block.chain.register_forward_hook(lambda *args: outputs.append(args[-1].detach()))
    dtype = engine.blocks[0].numerics.dtype
    posts = posts_of(engine, 0, lambda t, shard: (batch_of(t)[0].to(dtype), batch_of(t)[1]))
    for k in (2, 3):
        message = only(posts, "x", f"block{k}")
        assert sorted(message) == ["x", "y"]
        assert_same_bits({"x": message["x"]}, {"x": outputs[k - 2]})
        gradient = only(posts, "g", f"block{k - 1}")
        assert list(gradient) == ["gradient"]
        assert gradient["gradient"].dtype == message["x"].dtype


@pytest.mark.parametrize(
    ("codec", "bytes_of_a_tensor"),
    [
        (Float32CodecSettings(), 8 * 6 * 8),  # float64, as computed
        (BFloat16CodecSettings(), 8 * 6 * 2),
        (Float16CodecSettings(), 8 * 6 * 2 + 4),
        (INT8, 8 * 6 + 6 * 4),
    ],
    ids=["float32", *KINDS],
)
@pytest.mark.parametrize("rule", [Backprop(), Interlocking(reach=2), Interlocking(reach=3)])
def test_bytes_on_the_way(rule: Rule, codec: CodecSettings, bytes_of_a_tensor: int) -> None:
    posts = posts_of(engine_of(rule, codec), 0, shards_of())
    gradients = [p.message for p in posts if p.key.what == "g"]
    assert len(gradients) == 2
    for k in (2, 3):
        assert size_of(only(posts, "x", f"block{k}"), "x") == bytes_of_a_tensor
    for message in gradients:
        assert size_of(message, "gradient") == bytes_of_a_tensor


@pytest.mark.parametrize(("settings", "codec"), LOSSY, ids=KINDS)
def test_backprop_by_hand(settings: CodecSettings, codec: Codec) -> None:
    """Forward through what was decoded, and back with gradients that were decoded."""
    engine = engine_of(Backprop(), settings)
    chains = [chain for chain, _ in parts_of(engine)]
    got = gradients_of(engine, 0, shards_of())

    def crossed(tensor: Tensor) -> Tensor:
        return codec.decode(codec.encode("t", tensor), "t", torch.float64)

    h, y = batch_of(0)
    inputs, outputs = [], []
    for chain in chains:
        x = (h if not outputs else crossed(h)).detach().requires_grad_()
        h = chain(x)
        inputs.append(x)
        outputs.append(h)
    gradient = torch.autograd.grad(F.cross_entropy(h, y, reduction="sum"), h, retain_graph=True)[0]
    for k in (3, 2, 1):
        chain = chains[k - 1]
        leaves = [*chain.parameters(), inputs[k - 1]]
        *grads, back = torch.autograd.grad(outputs[k - 1], leaves, gradient)
        assert_close(got[k], named_like(chain, [g / 8 for g in grads]))
        gradient = crossed(back)
    plain = gradients_of(engine_of(Backprop(), Float32CodecSettings()), 0, shards_of())
    assert not torch.equal(plain[1]["0.0.weight"], got[1]["0.0.weight"])


@pytest.mark.parametrize(("settings", "codec"), LOSSY, ids=KINDS)
def test_reconcile_compares_with_the_decoded_gradient(
    settings: CodecSettings, codec: Codec
) -> None:
    rule = Reconciliation(weight=0.7, warmup=0.0, distance="squared")
    engine = engine_of(rule, settings)
    (_, *_), (chain, head), _ = parts_of(engine)
    assert head is not None
    got: dict[str, Tensor] = {}
    engine.blocks[1].updater.observer = lambda seen: got.update(
        {n: g.clone() for n, g in seen.items()}
    )
    message = only(posts_of(engine, 3, shards_of()), "x", "block2")
    coded = {n.removeprefix("t") for n in codec.encode("t", torch.ones(2, 3))}
    assert set(message) == {f"{name}{rest}" for name in "xd" for rest in coded} | {"y"}
    x = codec.decode(message, "x", torch.float64).requires_grad_()
    d = codec.decode(message, "d", torch.float64)
    loss = F.cross_entropy(head(chain(x)), message["y"], reduction="sum")
    (e,) = torch.autograd.grad(loss, x, create_graph=True)
    parameters = [*chain.parameters(), *head.parameters()]
    total = loss + 0.7 * gradient_distance(e, d, scale_free=False)
    grads = [g / 8 for g in torch.autograd.grad(total, parameters)]
    own = len(list(chain.parameters()))
    assert_close(got, named_like(chain, grads[:own]) | named_like(head, grads[own:]))


def test_images_travel_as_int8_and_come_back_channels_last() -> None:
    engine = image_engine_of(Interlocking(), INT8)
    seen: list[Tensor] = []
    for block in engine.blocks[1:]:
        block.chain.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    posts = posts_of(engine, 0, images_of)
    message = only(posts, "x", "block2")
    assert message["x"].dtype == torch.int8 and message["x"].shape == (8, 4, 4, 4)
    assert message["x"].is_contiguous() and message["x.scale"].shape == (1, 4, 1, 1)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(seen[0], Int8().decode(message, "x", torch.float32))
    # What the layout changes is rounding, except where it moves a value across half a level.
    other = image_engine_of(Interlocking(), INT8, precision=PrecisionSettings())
    twin = only(posts_of(other, 0, images_of), "x", "block2")
    assert (twin["x"].short() - message["x"].short()).abs().max() <= 1


@pytest.mark.parametrize(("settings", "codec"), LOSSY, ids=KINDS)
def test_evaluations_are_those_of_the_network_without_codec(settings, codec) -> None:
    engines = [engine_of(Local(), c) for c in (settings, Float32CodecSettings())]
    train(engines[0], range(3), shards_of())
    engines[1].load_state_dict(snapshot(engines[0]), 3)
    metrics = [e.evaluate(2, "test", iter([batch_of(50)])) for e in engines]
    assert metrics[0] == metrics[1] and len(metrics[0]) == 3


@pytest.mark.parametrize("settings", [s for s, _ in LOSSY], ids=KINDS)
@pytest.mark.parametrize("rule", [Local(), Interlocking(), Backprop()])
def test_digits_are_learned(rule: Rule, settings: CodecSettings) -> None:
    dataset = load_dataset(DigitsSettings())
    batches = Batches(dataset, seed=0, batch=64, shards=1, augment=AugmentSettings())
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()),
        nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU()),
        nn.Linear(32, 10),
    )
    options = learner_settings(
        batch=64, optimizer=AdamWSettings(lr=0.01), precision=PrecisionSettings(), codec=settings
    )
    x, _ = batches.shard(0, 0)
    engine = make_engine(rule, model, ["1", "2"], x=x, classes=10, settings=options)
    train(engine, range(60), batches.shard)
    accuracy = engine.evaluate(59, "test", batches.evaluation("test", 256))["block3"]["accuracy"]
    assert accuracy > 0.9


RESUMED: dict[str, Rule] = {
    "delayed, weights": DelayedGradients(lag=2),
    "delayed, inputs": DelayedGradients(lag=2, stash="inputs"),
    "delayed, compensated": DelayedGradients(compensation=0.5),
    "replay": ReplayedLocal(buffer=3),
    "interlocking": Interlocking(reach=3),
    "reconcile": Reconciliation(),
    "dfa": DirectAlignment(),
}


@pytest.mark.parametrize("settings", [s for s, _ in LOSSY], ids=KINDS)
@pytest.mark.parametrize("name", RESUMED)
def test_resuming_half_way_ends_with_the_same_bits(name: str, settings: CodecSettings) -> None:
    whole, resumed = (image_engine_of(RESUMED[name], settings) for _ in range(2))
    train(whole, range(5), images_of)
    train(resumed, range(2), images_of)  # something to forget
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()), 5)
    for engine in (whole, resumed):
        train(engine, range(5, 10), images_of)
    assert_same_state(snapshot(whole), snapshot(resumed))
    plain = image_engine_of(RESUMED[name], Float32CodecSettings())
    train(plain, range(10), images_of)
    assert not torch.equal(*(model_state(e)["1.0.weight"] for e in (plain, whole)))


def test_what_waits_in_a_state_is_coded() -> None:
    """The codes that came, not what they decode to: a state is as small as the messages were."""
    engine = engine_of(DelayedGradients(), INT8, precision=DOUBLE)
    train(engine, range(4), shards_of())
    state = snapshot(engine)["block2"]
    assert state["pending.3.0.x"].dtype == torch.int8
    assert state["pending.3.0.x.scale"].shape == (1, 6)
    assert state["sent.g.2.0.3.4.block1.gradient"].dtype == torch.int8
    assert state["sent.g.2.0.3.4.block1.gradient.scale"].shape == (1, 6)
    replay = engine_of(ReplayedLocal(buffer=2), INT8)
    train(replay, range(3), shards_of())
    names = {n for n in snapshot(replay)["block2"] if n.startswith("replay")}
    slots = {f"replay.{i}.{n}" for i in (0, 1) for n in ("x", "x.scale", "y")}
    assert names == {"replay.arrived"} | slots
