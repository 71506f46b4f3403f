"""What the tests of checkpoints share: states that a seed tells, and whole checkpoints of them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.checkpoints import Checkpoints
from orchestrator.storage import LocalStorage, Storage

State = dict[str, dict[str, Tensor]]


def make_state(seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    return {
        "block1": {
            "model.0.weight": torch.randn(3, 2, generator=g),
            "optimizer.0.weight.step": torch.tensor(float(seed)),
        },
        "feedback1": {"feedback.bias": torch.randn(2, generator=g)},
        "block2": {"model.1.weight": torch.randn(2, generator=g, dtype=torch.float64)},
        "block3": {},
    }


def checkpoints_in(where: Path | Storage) -> Checkpoints:
    return Checkpoints(LocalStorage(where) if isinstance(where, Path) else where)


def save(where: Path | Storage, step: int, seed: int) -> None:
    checkpoints_in(where).save(
        step, make_state(seed), plan_hash="ab", rule={"seed": seed}, metrics={"loss": seed / 3}
    )


def same(a: State, b: State) -> bool:
    def bits(t: Tensor) -> bytes:
        return (
            t.clone(memory_format=torch.contiguous_format)
            .reshape(-1)
            .view(torch.uint8)
            .numpy()
            .tobytes()
        )

    def plain(s: State) -> dict:
        return {k: {n: (t.dtype, t.shape, bits(t)) for n, t in ts.items()} for k, ts in s.items()}

    return plain(a) == plain(b)


def seed_of(where: Path | Storage, step: int) -> int:
    """Load and verify that it is wholly the checkpoint of one seed; returns the seed."""
    c = checkpoints_in(where).load(step)
    seed = c.rule["seed"]
    assert same(c.state, make_state(seed))
    assert (c.step, c.plan_hash, c.metrics) == (step, "ab", {"loss": seed / 3})
    return seed


def leftovers(directory: Path) -> list[str]:
    """What a crash left: hidden files, and directories besides one whole one of each step."""
    names = os.listdir(directory)
    whole = len(checkpoints_in(directory).steps())
    surplus = [n for n in names if n.startswith("step-")][whole:]
    return [n for n in names if n.startswith(".")] + surplus
