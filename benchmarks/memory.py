"""Peak memory of training: activations, gradients and whole processes, backprop against blocks.

    python -m benchmarks.memory

A network of equal layers is cut into K equal blocks. Every block is trained in a process of its
own, as actors are, on messages of the right shapes; K = 1 is backprop in one process. Two kinds of
numbers, which have to agree:

- counted: bytes of storages that torch kept for backward passes (activations), of those that were
  alive when the update began (gradients), and the most that was alive at once (both, messages and
  temporaries). Parameters are never counted; SGD without momentum has no state.
- of the process: the peak of its resident memory above what it held before its first step, and the
  peak itself, as the kernel counts them (Linux). The repeats are fresh processes.

Steps of a block do not overlap here: one step's activations are alive at a time. A window of
messages that wait for a slower block comes on top, as does what Ray needs in each process.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import itertools
import multiprocessing
import os
import statistics
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import records
from blocklocal import arrays_dataset
from blocklocal.compare.meters import StepMeter
from blocklocal.config import make_config
from blocklocal.preparation import prepare
from learning.build import build_block
from learning.learners.block import BlockLearner
from learning.messages import Message, block_name

CLASSES = 10
BLOCKS = (1, 2, 4, 8)
REPEATED = 4
"""The number of blocks that is measured in all repeats, and under backprop in blocks as well."""
TARGET_SHARE = 0.35
STEPS = 3
MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Block `k` of `blocks` of a network of `depth` equal layers.

    Attributes:
        width: features of an MLP's layer, channels of a convolution's.
        repeat: which of the fresh processes this is.
    """

    network: str
    rule: str
    depth: int
    width: int
    batch: int
    blocks: int
    k: int
    repeat: int = 0


class Residual(nn.Module):
    """Convolution, batch norm and ReLU beside the identity: (B, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.norm(self.convolution(x)))


def network(case: Case) -> tuple[nn.Module, tuple[int, ...]]:
    """The whole network, with a classifier in its last block, and the shape of its input."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if case.network == "mlp":
        for i in range(case.depth):
            layers[f"layer{i + 1}"] = nn.Sequential(nn.Linear(case.width, case.width), nn.ReLU())
        layers["head"] = nn.Linear(case.width, CLASSES)
        return nn.Sequential(layers), (case.width,)
    for i in range(case.depth):
        layers[f"layer{i + 1}"] = Residual(case.width)
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(case.width, CLASSES))
    layers["head"] = pooled
    return nn.Sequential(layers), (case.width, 16, 16)


def learner_of(case: Case) -> tuple[BlockLearner, list[tuple[int, ...]]]:
    """The learner of the case's block, and the shapes of the boundaries 0 to K without batch."""
    each = case.depth // case.blocks
    config = make_config(
        {
            "blocks": {"at": [f"layer{1 + i * each}" for i in range(1, case.blocks)]},
            "rule": {"kind": case.rule},
            "optimizer": {"kind": "sgd", "lr": 0.01, "momentum": 0.0},
            "training": {"steps": 2 * STEPS, "batch": case.batch},
            "engine": {"kind": "sequential", "resources": {"threads": 1}},
            "tracking": {"enabled": False},
        }
    )
    model, shape = network(case)
    x = np.zeros((case.batch, *shape), dtype=np.float32)
    y = np.arange(case.batch) % CLASSES
    data = arrays_dataset(x, y, x[:1], y[:1], validation=0, classes=CLASSES, normalize=False)
    ready = prepare(config, model=model, dataset=data)
    units = ready.plan.units_of_blocks(ready.units)
    learner = build_block(ready.program, case.k, units[case.k - 1])
    return learner, [shape, *(block.output_shape for block in ready.plan.blocks)]


def train_step(
    learner: BlockLearner,
    case: Case,
    step: int,
    shapes: Sequence[tuple[int, ...]],
    live: LiveBytes | None = None,
) -> None:
    """One step of a block; what other blocks would send is made up."""
    message: Message = {
        "x": torch.ones(case.batch, *shapes[case.k - 1]),
        "y": torch.arange(case.batch) % CLASSES,
    }
    learner.forward(step, 0, message)
    del message  # the learner keeps what it needs
    if case.rule == "backprop" and case.k < case.blocks:
        gradient = torch.ones(case.batch, *shapes[case.k])
        learner.receive(step, 0, case.blocks, {"gradient": gradient})
        del gradient
    else:
        learner.assess(step, 0)
    if live is not None:
        live.before_update()
    learner.update(step)


class LiveBytes(TorchDispatchMode):
    """Follows the storages that operations allocate, from their first tensor to their end.

    Attributes:
        peak: the most bytes alive at once.
        gradients: the most bytes alive at the beginning of an update.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self.gradients = 0
        self._live: dict[int, int] = {}

    def before_update(self) -> None:
        """All activations are gone; what is alive are gradients."""
        self.gradients = max(self.gradients, sum(self._live.values()))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {s.data_ptr() for s in _storages((args, kwargs))}
        for storage in _storages(out):
            at, size = storage.data_ptr(), storage.nbytes()
            # Views and in-place results live in storages that are known, or were there before.
            if size and at not in given and at not in self._live:
                self._live[at] = size
                weakref.finalize(storage, self._live.pop, at)
        self.peak = max(self.peak, sum(self._live.values()))
        return out


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def counted(case: Case) -> dict[str, int]:
    """Bytes that a step of the case's block keeps, in this process; the same in every run."""
    learner, shapes = learner_of(case)
    there = [*learner.updater.parameters]
    there += [b for u in learner.units for b in u.module.buffers()]
    if learner.objective is not None:
        there += learner.objective.buffers()
    meter = StepMeter(there)
    meter.follow(block_name(case.k), learner)
    with meter.watching():
        for step in range(STEPS):
            train_step(learner, case, step, shapes)
    live = LiveBytes()
    with live:
        for step in range(STEPS, 2 * STEPS):
            train_step(learner, case, step, shapes, live)
    return {
        "activations": meter.peak[case.k],
        "gradients": live.gradients,
        "allocated": live.peak,
    }


def measure(case: Case) -> dict[str, Any]:
    """Measure one block in this process, which has to be a fresh one."""
    torch.set_num_threads(1)
    learner, shapes = learner_of(case)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what building left free would hide what steps need
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = _resident("VmRSS")
    for step in range(STEPS):
        train_step(learner, case, step, shapes)
    peak = _resident("VmHWM")
    measured = {"process_above": peak - before, "process": peak}
    return asdict(case) | measured | counted(case)


def _resident(name: str) -> int:
    """A line of the kernel's account of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}: this benchmark needs Linux")


def cases(arguments: argparse.Namespace) -> list[Case]:
    """Every block of every network; at the centre K = 1 and 4 again in all repeats."""
    made: dict[Case, None] = {}
    centre = arguments.depths[len(arguments.depths) // 2], arguments.batches[-1]
    points: list[tuple[int, int]] = [centre, *((d, centre[1]) for d in arguments.depths)]
    points += [(centre[0], b) for b in arguments.batches]
    networks: list[str] = arguments.networks
    for repeat, name, (depth, batch) in itertools.product(
        range(arguments.repeats), networks, points
    ):
        if repeat and (depth, batch) != centre:
            continue
        width = arguments.width if name == "mlp" else arguments.channels
        size = Case(name, "backprop", depth, width, batch, 1, 1, repeat)
        made[size] = None
        for blocks in arguments.blocks:
            if blocks == 1 or (repeat and blocks != REPEATED):
                continue
            for k in range(1, blocks + 1):
                made[replace(size, rule="local", blocks=blocks, k=k)] = None
                if (depth, batch) == centre and blocks == REPEATED:
                    made[replace(size, blocks=blocks, k=k)] = None
    return list(made)


Point = tuple[str, int, int]
"""Network, depth, batch."""


def summary(measured: Sequence[dict[str, Any]]) -> dict[Point, dict[tuple[str, int], Any]]:
    """By point, then by rule and number of blocks: of each quantity the largest block and the sum.

    Each is the median over repeats, with the lowest and the highest.
    """
    grouped: dict[Point, dict[tuple[str, int], dict[int, list[dict[str, Any]]]]] = {}
    for m in measured:
        point = (m["network"], m["depth"], m["batch"])
        by_rule = grouped.setdefault(point, {}).setdefault((m["rule"], m["blocks"]), {})
        by_rule.setdefault(m["repeat"], []).append(m)
    quantities = ("activations", "gradients", "allocated", "process_above", "process")
    return {
        point: {
            rule: {
                f"{name} {how}": _spread([act([m[name] for m in r]) for r in repeats.values()])
                for name in quantities
                for how, act in (("largest", max), ("sum", sum))
            }
            for rule, repeats in rules.items()
        }
        for point, rules in grouped.items()
    }


def _spread(values: Sequence[int]) -> tuple[float, int, int]:
    return statistics.median(values), min(values), max(values)


def page(record: dict[str, Any]) -> str:
    lines = [
        "# Peak memory: backprop against blocks",
        "",
        f"Equal layers cut into K equal blocks, each in a process of its own; `local` has linear "
        f"heads, `backprop` in blocks takes gradients from the next block. MiB of the largest "
        f"block, in brackets its share of backprop in one process (K = 1). Counts are exact; "
        f"resident memory above that before the first step: median of {record['repeats']} fresh "
        f"processes (lowest to highest).",
    ]
    points = summary(record["measured"])
    for (name, depth, batch), rules in points.items():
        lines += [
            "",
            f"## {name}, {depth} layers of {record['widths'][name]}, batch {batch}",
            "",
            "| rule | K | activations | gradients | allocated at once | resident, above the start "
            "| whole process | all processes together |",
            "|---|---|---|---|---|---|---|---|",
        ]
        whole = rules["backprop", 1]
        for (rule, blocks), values in sorted(rules.items(), key=lambda r: (r[0][1], r[0][0])):
            cells = [rule, str(blocks)]
            for quantity in ("activations", "gradients", "allocated", "process_above"):
                middle, low, high = values[f"{quantity} largest"]
                share = middle / max(1, whole[f"{quantity} largest"][0])
                spread = "" if low == high else f" ({low / MIB:.1f} to {high / MIB:.1f})"
                cells.append(f"{middle / MIB:.2f}{spread} [{share:.0%}]")
            cells.append(f"{values['process largest'][0] / MIB:.0f}")
            cells.append(f"{values['process sum'][0] / MIB:.0f}")
            lines.append("| " + " | ".join(cells) + " |")
    shares = [
        rules["local", 4]["activations largest"][0] / rules["backprop", 1]["activations largest"][0]
        for rules in points.values()
        if ("local", 4) in rules
    ]
    if shares:
        lines += [
            "",
            f"Activations of the largest of 4 blocks under `local`: {min(shares):.0%} to "
            f"{max(shares):.0%} of backprop's (target: at most {TARGET_SHARE:.0%}). Above 1/K are "
            "the block's input and its auxiliary head. Backprop in blocks saves as much for each "
            "process with one step under way; to keep its K processes busy it needs several.",
        ]
    lines += ["", records.footer(record["environment"])]
    return "\n".join(lines) + "\n"


def options(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="+", default=["mlp", "conv"], choices=["mlp", "conv"])
    parser.add_argument("--blocks", type=int, nargs="+", default=BLOCKS)
    parser.add_argument("--depths", type=int, nargs="+", default=[8, 16, 32])
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--width", type=int, default=512, help="of the MLP")
    parser.add_argument("--channels", type=int, default=16, help="of the convolutions")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at once")
    arguments = parser.parse_args(words)
    for depth, blocks in itertools.product(arguments.depths, arguments.blocks):
        if depth % blocks:
            parser.error(f"{depth} layers are not {blocks} equal blocks: choose a multiple")
    return arguments


def main(words: Sequence[str] | None = None) -> None:
    arguments = options(words)
    with ProcessPoolExecutor(
        arguments.workers, multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as pool:
        measured = list(pool.map(measure, cases(arguments)))
    record = {
        "environment": records.environment(),
        "repeats": arguments.repeats,
        "widths": {"mlp": arguments.width, "conv": arguments.channels},
        "measured": measured,
    }
    records.write("memory", record, page(record))


if __name__ == "__main__":
    main()
