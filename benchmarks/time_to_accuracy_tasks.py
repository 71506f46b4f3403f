"""What is trained to a fixed accuracy: the examples, and every rule with its settings."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blocklocal.config import RunConfig, make_config, read_tree

EXAMPLES = Path(__file__).parent.parent / "examples"
ONE_PROCESS = "backprop, one process"
CUTS = {"cifar10": {2: ["layer3"]}, "shakespeare": {2: ["block3"]}}
"""Where the networks of the examples are cut; into four blocks as the examples say."""
CONV = {"kind": "conv", "grid": 2}
HEAD = {"kind": "transformer"}
RULES: dict[str, dict[str, dict[str, Any]]] = {
    "cifar10": {
        ONE_PROCESS: {"kind": "backprop"},
        "backprop": {"kind": "backprop"},
        "local": {"kind": "local", "head": CONV},
        "pairwise": {"kind": "interlocking", "reach": 2, "head": CONV},
        "3-wise": {"kind": "interlocking", "reach": 3, "head": CONV},
        "reconcile": {"kind": "reconcile", "weight": 0.3, "warmup": 1.0, "head": CONV},
        "bll": {
            "kind": "bll",
            "latent": {"convolution": 128},
            "feedback": {"optimizer": {"kind": "adamw", "lr": 0.0003}},
        },
    },
    "shakespeare": {
        ONE_PROCESS: {"kind": "backprop"},
        "backprop": {"kind": "backprop"},
        "local": {"kind": "local", "head": HEAD},
        "pairwise": {"kind": "interlocking", "reach": 2, "head": HEAD},
        "3-wise": {"kind": "interlocking", "reach": 3, "head": HEAD},
        "reconcile": {"kind": "reconcile", "head": HEAD},
        "bll": {"kind": "bll", "candidates": "batch"},
    },
}


@dataclass(frozen=True)
class Task:
    """One example: what to train on, how long, and what is reached when.

    Attributes:
        data: settings over the example's own.
        target: test accuracy, 0 to 1, or perplexity.
        falling: whether lower is better.
    """

    name: str
    data: dict[str, Any]
    steps: int
    every: int
    rows: int
    target: float
    falling: bool

    def reached(self, value: float) -> bool:
        """Whether a value is as good as the target."""
        return value <= self.target if self.falling else value >= self.target


def configuration(task: Task, name: str, blocks: int, seed: int) -> RunConfig:
    """The example's settings with another rule, cut, length and seed."""
    tree = read_tree(EXAMPLES / f"{task.name}.yaml")
    tree["data"] |= task.data
    tree["blocks"] = {"at": CUTS[task.name].get(blocks, tree["blocks"]["at"])}
    tree["rule"] = RULES[task.name][name]
    tree["training"] |= {"steps": task.steps, "seed": seed}
    threads = os.cpu_count() or 1
    if name == ONE_PROCESS:
        tree["engine"] = {"kind": "sequential", "resources": {"threads": threads}}
    else:
        tree["engine"] = {"resources": {"threads": max(1, threads // blocks)}}
    tree["tracking"] = {"enabled": False}
    return make_config(tree)


def rules_of(task: Task, blocks: int) -> list[str]:
    """The rules that are not backprop under another name: N-wise with N >= K is."""
    rules = RULES[task.name]
    return [name for name, rule in rules.items() if rule.get("reach", 1) < blocks]
