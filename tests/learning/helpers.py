"""Tiny programs, data and snapshots that the tests of `learning` share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from learning.build import Program
from learning.credit import Hop
from learning.learners.base import LearnerSettings
from learning.messages import Post
from learning.objectives.base import AuxiliaryClassifier, Objective
from learning.objectives.heads import PooledLinear
from learning.rules import Rule
from learning.rules.base import Site
from learning.sequential import SequentialEngine
from learning.settings import (
    CodecSettings,
    ConstantSchedule,
    Float32CodecSettings,
    OptimizerSettings,
    PrecisionSettings,
    ScheduleSettings,
    SGDSettings,
    UpdateSettings,
)
from learning.units import Chain, Unit, split, units_of

torch.set_num_threads(1)  # tensors this small only wait for other threads

DOUBLE = PrecisionSettings(compute="float64")
PLAIN_SGD = SGDSettings(lr=1.0, momentum=0.0)
State = dict[str, dict[str, Tensor]]


class Hops(Rule):
    """Any credit, with linear auxiliary classifiers."""

    kind: Literal["hops"] = "hops"
    weights: dict[float, float]

    @property
    def credit(self) -> Hop:
        return Hop(self.weights)

    def objective(self, site: Site) -> Objective | None:
        return AuxiliaryClassifier(PooledLinear(site.shape, site.classes, grid=1))


def learner_settings(
    *,
    optimizer: OptimizerSettings = PLAIN_SGD,
    schedule: ScheduleSettings | None = None,
    precision: PrecisionSettings = DOUBLE,
    seed: int = 0,
    batch: int = 4,
    shards: int = 1,
    steps: int = 10,
    update: UpdateSettings = UpdateSettings(),
    codec: CodecSettings = Float32CodecSettings(),
) -> LearnerSettings:
    """Settings of a learner; float64 and plain SGD unless told."""
    schedule = schedule or ConstantSchedule()
    return LearnerSettings(
        optimizer, schedule, precision, seed, batch, shards, steps, update, codec
    )


def mlp(seed: int, *, norm: bool = False, dropout: float = 0.0) -> nn.Sequential:
    """Three tanh layers of width 6 and a head: 4 features to 3 classes, in four named units."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for size in (4, 6, 6):
            layer: list[nn.Module] = [nn.Linear(size, 6)]
            layer += [nn.BatchNorm1d(6)] if norm else []
            layer += [nn.Tanh()]
            layer += [nn.Dropout(dropout)] if dropout else []
            layers.append(nn.Sequential(*layer))
        return nn.Sequential(*layers, nn.Linear(6, 3))


def convnet(seed: int, *, norm: bool = True) -> nn.Sequential:
    """Two convolutions and a head: images of 2 x 4 x 4 to 3 classes."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        middle = [nn.BatchNorm2d(4)] if norm else []
        return nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *middle, nn.ReLU()),
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 3)),
        )


def batch_of(
    step: int, *, batch: int = 8, shape: Sequence[int] = (4,), classes: int = 3
) -> tuple[Tensor, Tensor]:
    """The global batch of a step, float64."""
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (batch,), generator=generator)


def shards_of(
    shards: int = 1, *, batch: int = 8, shape: Sequence[int] = (4,), classes: int = 3
) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    """The same batches as `batch_of`, cut into equal shards."""

    def shard_of(step: int, shard: int) -> tuple[Tensor, Tensor]:
        x, y = batch_of(step, batch=batch, shape=shape, classes=classes)
        return x.chunk(shards)[shard], y.chunk(shards)[shard]

    return shard_of


def make_engine(
    rule: Rule,
    model: nn.Sequential,
    at: Sequence[str],
    *,
    x: Tensor,
    classes: int = 3,
    settings: LearnerSettings,
) -> SequentialEngine:
    """Cut a copy of `model` before the units named `at` and build its engine."""
    blocks = split(units_of(copy.deepcopy(model)), at)
    shapes = tuple(_output_shapes(blocks, x))
    program = Program(rule, settings, shapes, classes, all_train=not model.training)
    return SequentialEngine(program, blocks)


@torch.no_grad()
def _output_shapes(blocks: Sequence[Sequence[Unit]], x: Tensor) -> list[tuple[int, ...]]:
    shapes, h = [], x.float()
    for block in blocks:
        for unit in block:
            was_training = unit.module.training
            h = unit.module.eval()(h)
            unit.module.train(was_training)
        shapes.append(tuple(h.shape[1:]))
    return shapes


def train(
    engine: SequentialEngine, steps: range, shard_of: Callable[[int, int], tuple[Tensor, Tensor]]
) -> list[dict[str, dict[str, float]]]:
    """Run some steps; returns their metrics."""
    return [engine.train_step(step, shard_of) for step in steps]


def gradients_of(
    engine: SequentialEngine, step: int, shard_of: Callable[[int, int], tuple[Tensor, Tensor]]
) -> dict[int, dict[str, Tensor]]:
    """Run a step; returns the mean gradients that each block's optimizer got, by name."""
    got: dict[int, dict[str, Tensor]] = {block.index: {} for block in engine.blocks}
    for block in engine.blocks:

        def observe(gradients: dict[str, Tensor], into: dict[str, Tensor] = got[block.index]):
            into.update({name: g.clone() for name, g in gradients.items()})

        block.updater.observer = observe
    engine.train_step(step, shard_of)
    for block in engine.blocks:
        block.updater.observer = None
    return got


def posts_of(
    engine: SequentialEngine, step: int, shard_of: Callable[[int, int], tuple[Tensor, Tensor]]
) -> list[Post]:
    """Run a step; returns what the learners sent each other, in order."""
    sent: list[Post] = []
    deliver = engine._post

    def post(posts: Iterable[Post]) -> None:
        some = list(posts)
        sent.extend(p for p in some if p.key.what != "x" or p.to != "block1")
        deliver(some)

    engine._post = post  # type: ignore[method-assign]
    try:
        engine.train_step(step, shard_of)
    finally:
        del engine._post
    return sent


def parts_of(engine: SequentialEngine) -> list[tuple[nn.Module, nn.Module | None]]:
    """Copies of each block's units, as one module, and of its auxiliary head if it has one."""
    return [
        copy.deepcopy((block.chain, getattr(block.objective, "head", None)))
        for block in engine.blocks
    ]


def named_like(module: nn.Module, gradients: Sequence[Tensor | None]) -> dict[str, Tensor]:
    """Gradients of all parameters of a copied block or head, under the names updates have."""
    named: dict[str, Tensor] = {}
    for (name, _), gradient in zip(module.named_parameters(), gradients, strict=True):
        if gradient is not None:
            original = (
                module.original_name if isinstance(module, Chain) else "auxiliary.head.{}".format
            )
            named[original(name)] = gradient
    return named


def snapshot(engine: SequentialEngine) -> State:
    """A copy of the engine's state."""
    return {n: {k: t.clone() for k, t in s.items()} for n, s in engine.state_dict().items()}


def model_state(engine: SequentialEngine) -> dict[str, Tensor]:
    """Copies of the weights and buffers of all blocks under their original names."""
    return {
        n.removeprefix("model."): t
        for b in engine.blocks
        for n, t in snapshot(engine)[f"block{b.index}"].items()
        if n.startswith("model.")
    }


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Same names, types and bits."""
    assert sorted(left) == sorted(right)
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert torch.equal(tensor, right[name]), name


def assert_same_state(left: State, right: State) -> None:
    """`assert_same_bits` for every learner of two engines."""
    assert sorted(left) == sorted(right)
    for name in left:
        assert_same_bits(left[name], right[name])


def assert_close(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    """Same names, values equal up to float64 rounding."""
    assert sorted(left) == sorted(right)
    for name, tensor in left.items():
        torch.testing.assert_close(tensor, right[name], rtol=1e-10, atol=1e-12)


def make_custom(width: int = 5) -> nn.Sequential:
    """The factory of a user's own network, reached by import path."""
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
