"""How a step's time depends on the reach N of a rule and on the number of blocks K.

    python -m benchmarks.reach

Blocks whose forward pass and two backward passes (input, weights) each wait a set time instead of
computing, so that K = 8 blocks run at once on any machine: what is measured is the order of
messages. One shard, small messages, one step in flight. With times f, g, w of a block's forward
pass and its backward passes to input and weights, and no cost of communication, the slowest part
of an N-wise network are its last N blocks, whatever K is: the task loss's gradient goes through
N-1 of them whole and reaches the weights of the first,

    T = N f + (N-1) (g + w) + w

which is f + w for local learning (N = 1) and K f + (K-1) (g + w) + w for backprop (N = K).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks import records
from blocklocal import arrays_dataset
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, make_config
from blocklocal.engines import engine_of
from blocklocal.preparation import prepare
from orchestrator.events import Worked
from orchestrator.program import Calendar

WIDTH, BATCH, CLASSES = 8, 8, 4
WARMUP = 5  # steps before the clock starts
BLOCKS = (2, 4, 8)
RULES: dict[str, dict[str, Any]] = {
    "local": {"kind": "local"},
    "pairwise (N = 2)": {"kind": "interlocking", "reach": 2},
    "3-wise": {"kind": "interlocking", "reach": 3},
    "backprop": {"kind": "backprop"},
}


class _Wait(torch.autograd.Function):
    """The identity; it takes set times forward and backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.seconds = backward
        time.sleep(forward)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        time.sleep(ctx.seconds)
        return gradients[0], None, None


class Waiting(nn.Module):
    """A layer (B, D) to (B, D); its forward and each of its two backward passes take `seconds`."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        # Two ways back: autograd takes only that to the input when only that is asked for.
        weight = _Wait.apply(self.weight, 0.0, self.seconds)
        return _Wait.apply(x, self.seconds, self.seconds) * weight


def configuration(blocks: int, rule: dict[str, Any], steps: int) -> RunConfig:
    return make_config(
        {
            "blocks": {"at": [f"layer{k}" for k in range(2, blocks + 1)]},
            "rule": rule,
            "optimizer": {"kind": "sgd", "lr": 0.01},
            "training": {"steps": steps, "batch": BATCH},
            "engine": {
                "resources": {"threads": 1, "cpus": 0.1},
                "source": "block1",
                "window": 3,
            },
            "tracking": {"enabled": False},
        }
    )


def step_ms(blocks: int, rule: dict[str, Any], grain: float, steps: int) -> float:
    """Median time of a step of the Ray engine, from update to update of block 1."""
    layers = [(f"layer{k}", Waiting(grain)) for k in range(1, blocks + 1)]
    model = nn.Sequential(OrderedDict([*layers, ("head", nn.Linear(WIDTH, CLASSES))]))
    x = np.random.default_rng(0).standard_normal((64, WIDTH), dtype=np.float32)
    data = arrays_dataset(x, np.arange(64) % CLASSES, x, np.arange(64) % CLASSES, validation=0)
    ready = prepare(configuration(blocks, rule, steps), model=model, dataset=data)
    engine = engine_of(ready)
    updates = []
    try:
        for event in engine.train(range(steps), Calendar()):
            if isinstance(event, Worked) and event.actor == "block1":
                updates += [s.ended for s in event.spans if s.kind == "U"]
    finally:
        engine.close()
    return statistics.median(np.diff(updates[WARMUP:])) / 1e6


def expected(rule: dict[str, Any], blocks: int, grain_ms: float) -> float:
    """Without any cost of communication."""
    reach = blocks if rule["kind"] == "backprop" else min(rule.get("reach", 1), blocks)
    return grain_ms * (reach + 2 * (reach - 1) + 1)


def page(record: dict[str, Any]) -> str:
    blocks = [int(k) for k in next(iter(record["step_ms"].values()))]
    lines = [
        "# Time of a step by reach and number of blocks",
        "",
        f"Blocks that wait {record['grain_ms']:g} ms in each of forward pass, backward pass to the "
        "input and backward pass to the weights; medians (lowest to highest) of "
        f"{record['repeats']} interleaved repeats of {record['steps']} steps, the first {WARMUP} "
        "not counted. In brackets: without any cost of communication.",
        "",
        "| rule | " + " | ".join(f"K = {k}, ms" for k in blocks) + " |",
        "|---|" + "---|" * len(blocks),
    ]
    for name in record["step_ms"]:
        rule, cells = RULES[name], []
        for k in blocks:
            values = record["step_ms"][name][str(k)]
            ideal = expected(rule, k, record["grain_ms"])
            cells.append(
                f"{statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) "
                f"[{ideal:.0f}]"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--grain", type=float, default=0.03, help="seconds")
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--results", type=Path, default=records.RESULTS, help="directory")
    arguments = parser.parse_args(words)
    times: dict[str, dict[str, list[float]]] = {name: {} for name in RULES}
    with cluster(configuration(2, {"kind": "local"}, arguments.steps)):
        for _ in range(arguments.repeats):
            for name, rule in RULES.items():
                for k in arguments.blocks:
                    took = step_ms(k, rule, arguments.grain, arguments.steps)
                    times[name].setdefault(str(k), []).append(took)
    record = {
        "environment": records.environment(),
        "repeats": arguments.repeats,
        "steps": arguments.steps,
        "grain_ms": 1000 * arguments.grain,
        "step_ms": times,
    }
    records.write("reach", record, page(record), arguments.results)


if __name__ == "__main__":
    main()
