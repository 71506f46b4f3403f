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
import itertools
import multiprocessing
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from benchmarks import records
from benchmarks.memory_blocks import Case
from benchmarks.memory_measuring import measure
from benchmarks.memory_page import page

BLOCKS = (1, 2, 4, 8)
REPEATED = 4
"""The number of blocks that is measured in all repeats, and under backprop in blocks as well."""


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
