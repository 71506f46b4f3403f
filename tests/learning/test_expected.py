"""What a learner's state must hold: every rule's own states pass, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import pytest
import torch
from torch import Tensor, nn

from learning.build import Program
from learning.data import Batches
from learning.errors import UserError
from learning.expected import check_state
from learning.sequential import SequentialEngine
from learning.settings import AdamWSettings, ConstantSchedule, SGDSettings
from learning.units import Unit
from tests.orchestrator.engines import BATCH, Case
from tests.orchestrator.test_engine_exactness import CASES

State = dict[str, dict[str, Tensor]]
OPTIMIZERS = {
    "adamw": AdamWSettings(lr=0.01),
    "sgd": SGDSettings(lr=0.01),
    "sgd without momentum": SGDSettings(lr=0.01, momentum=0),
}


def _built(case: Case) -> tuple[Program, list[list[Unit]]]:
    """The program and its blocks, in the type in which they learn."""
    program, _, blocks = case.build()
    if case.precision.compute == "float64":
        for unit in chain(*blocks):
            unit.module.double()
    return program, blocks


def _states(case: Case, steps: int) -> list[State]:
    """The states after 1, 2, ... steps."""
    program, blocks = _built(case)
    engine = SequentialEngine(program, blocks)
    batches = Batches(
        case.data, seed=case.seed, batch=BATCH, shards=case.shards, augment=case.augment
    )
    states = []
    for step in range(steps):
        engine.train_step(step, batches.shard)
        copied = engine.state_dict()
        states.append({k: {n: t.clone() for n, t in s.items()} for k, s in copied.items()})
    return states


@pytest.mark.parametrize("name", CASES)
def test_every_rule_may_go_on_from_each_of_its_states(name: str) -> None:
    program, blocks = _built(CASES[name])
    before = [p.clone() for units in blocks for u in units for p in u.module.state_dict().values()]
    for done, state in enumerate(_states(CASES[name], 5), start=1):
        check_state(program, blocks, state, done, "here", whole=True)
    after = [p for units in blocks for u in units for p in u.module.state_dict().values()]
    assert all(map(torch.equal, before, after))


def _without(part: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    return lambda state: {n: t for n, t in state.items() if not n.startswith(part)}


@pytest.mark.parametrize("name", CASES)
def test_no_tensor_may_be_missing_surplus_or_of_another_kind(name: str) -> None:
    case = CASES[name]
    program, blocks = _built(case)
    state = _states(case, 5)[-1]

    def refused(learner: str, tensors: dict[str, Tensor], said: str) -> None:
        with pytest.raises(UserError) as caught:
            check_state(program, blocks, {**state, learner: tensors}, 5, "here", whole=True)
        assert said in str(caught.value), str(caught.value)

    for learner, tensors in state.items():
        parts = {name.partition(".")[0]: name for name in sorted(tensors, reverse=True)}
        for part, key in parts.items():
            tensor = tensors[key]
            if part in ("sent", "replay", "pending", "stashed"):
                continue
            short = key.removeprefix("model.")
            if part != "optimizer" or isinstance(case.optimizer, AdamWSettings):
                # With momentum alone it might be of a parameter that no gradient reaches.
                refused(learner, {n: t for n, t in tensors.items() if n != key}, short)
            if part in ("flags", "extra"):  # JSON of any length
                continue
            other = torch.int32 if tensor.dtype == torch.float16 else torch.float16
            refused(learner, {**tensors, key: tensor.to(other)}, short)
            refused(learner, {**tensors, key: tensor.new_zeros(*tensor.shape, 2)}, short)
        refused(learner, {**tensors, "model.more": torch.zeros(1)}, "more is missing in this")
        if any(n.startswith("optimizer.") for n in tensors):
            said = f"has no state of the optimizer for {learner}"
            refused(learner, _without("optimizer.")(tensors), said)
    with pytest.raises(UserError, match="block1 is not in the checkpoint from here"):
        check_state(program, blocks, {n: s for n, s in state.items() if n != "block1"}, 5, "here")
    with pytest.raises(UserError, match="block9 is in the checkpoint from here"):
        check_state(program, blocks, {**state, "block9": {}}, 5, "here")


@pytest.mark.parametrize("name", ["delayed, weights, batch norm", "replay, batch norm"])
def test_what_waits_may_not_be_missing(name: str) -> None:
    case = CASES[name]
    program, blocks = _built(case)
    state = _states(case, 5)[-1]
    for learner, tensors in state.items():
        for part in ("pending.", "stashed.", "replay.arrived"):
            rest = _without(part)(tensors)
            if len(rest) < len(tensors):
                with pytest.raises(UserError, match=rf"{part}.* of {learner} is there in this"):
                    check_state(program, blocks, {**state, learner: rest}, 5, "here")


@pytest.mark.parametrize("there", OPTIMIZERS)
@pytest.mark.parametrize("here", OPTIMIZERS)
def test_the_state_of_another_optimizer_is_refused(here: str, there: str) -> None:
    case = replace(CASES["local, no norm"], schedule=ConstantSchedule())
    state = _states(replace(case, optimizer=OPTIMIZERS[there]), 2)[-1]
    program, blocks = _built(replace(case, optimizer=OPTIMIZERS[here]))
    if here == there:
        check_state(program, blocks, state, 2, "here")
        return
    with pytest.raises(UserError, match="optimizer"):
        check_state(program, blocks, state, 2, "here")


def test_parameters_that_no_gradient_reaches_need_no_state() -> None:
    class Spare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x)

    case = CASES["local, no norm"]
    program, blocks = _built(case)
    blocks[0] = [*blocks[0][:-1], replace(blocks[0][-1], module=Spare())]
    plain = _states(case, 2)[-1]
    state = {n: dict(t) for n, t in plain.items()}
    name = blocks[0][-1].name
    own = Spare().double().state_dict()
    block = {n: t for n, t in state["block1"].items() if f".{name}." not in n}
    block |= {f"model.{name}.{n}": t for n, t in own.items()}
    for n, t in own.items():
        if n.startswith("used"):
            block |= {
                f"optimizer.{name}.{n}.step": torch.tensor(2.0),
                f"optimizer.{name}.{n}.exp_avg": t,
                f"optimizer.{name}.{n}.exp_avg_sq": t,
            }
    blocks[0][-1].module.double()
    check_state(program, blocks, {**state, "block1": block}, 2, "here")
