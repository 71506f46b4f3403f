"""What our engine is measured against, each a task for the processes of a `Crew`.

All of them train the network of a workload with the same SGD, from batches that are in memory
already: making and sending batches is counted for our engine only.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from benchmarks.crew import Seat
from benchmarks.workloads import LEARNING_RATE, MOMENTUM, Workload, configuration, prepared
from blocklocal.preparation import Prepared
from learning.build import build_block
from learning.sequential import SequentialEngine
from learning.units import Chain

BATCHES = 4  # made before the clock starts, used in turn
CONNECTING = timedelta(seconds=60)

Result = tuple[float, dict[str, np.ndarray]]
"""Seconds of the counted steps, and the weights after the last step by their names."""


def block_alone(seat: Seat, workload: Workload, warmup: int, steps: int) -> float:
    """The ceiling: block `rank + 1` learns locally from inputs that are there, without messages.

    Returns:
        Seconds of the counted steps.
    """
    ready = prepared(workload, configuration(workload, warmup + steps))
    k = seat.rank + 1
    learner = build_block(ready.program, k, ready.plan.units_of_blocks(ready.units)[k - 1])
    inputs = batches(ready)
    if k > 1:
        random, shape = torch.Generator().manual_seed(k), ready.program.output_shapes[k - 2]
        inputs = [(torch.randn(len(y), *shape, generator=random), y) for _, y in inputs]

    def one_step(step: int) -> None:
        x, y = inputs[step % BATCHES]
        learner.forward(step, 0, {"x": x, "y": y})
        learner.assess(step, 0)
        learner.update(step)

    return _seconds(one_step, warmup, steps, seat.barrier.wait)


def plain_backprop(seat: Seat, workload: Workload, threads: int, warmup: int, steps: int) -> Result:
    """One process, plain PyTorch: forward, backward, SGD."""
    ready = prepared(workload, configuration(workload, warmup + steps, rule="backprop"))
    model, inputs = Chain(ready.units), batches(ready)
    optimizer = _sgd(model)

    def one_step(step: int) -> None:
        x, y = inputs[step % BATCHES]
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return _with_threads(threads, one_step, warmup, steps), _weights(model)


def sequential_local(
    seat: Seat, workload: Workload, threads: int, warmup: int, steps: int
) -> float:
    """One process, local learning: all blocks in turn, by the sequential engine.

    Returns:
        Seconds of the counted steps.
    """
    ready = prepared(workload, configuration(workload, warmup + steps))
    engine = SequentialEngine(ready.program, ready.plan.units_of_blocks(ready.units))
    inputs = batches(ready)

    def one_step(step: int) -> None:
        engine.train_step(step, lambda step, shard: inputs[step % BATCHES])

    return _with_threads(threads, one_step, warmup, steps)


def pipelined(
    seat: Seat,
    workload: Workload,
    schedule: str,
    microbatches: int,
    port: int,
    warmup: int,
    steps: int,
) -> Result:
    """Backprop by `torch.distributed.pipelining` over gloo, block `rank + 1` in this process.

    Args:
        schedule: `GPipe` or `1F1B`, which needs as many microbatches as blocks.
        port: free on loopback, where the processes meet.
    """
    ready = prepared(workload, configuration(workload, warmup + steps, rule="backprop"))
    module = Chain(ready.plan.units_of_blocks(ready.units)[seat.rank])
    inputs, optimizer = batches(ready), _sgd(module)
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    os.environ["GLOO_SOCKET_IFNAME"] = loopback
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=seat.rank,
        world_size=seat.size,
        timeout=CONNECTING,
    )
    try:
        stage = PipelineStage(module, seat.rank, seat.size, torch.device("cpu"))
        kind = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}[schedule]
        # It divides the gradients by the microbatches: those of the whole batch's mean loss.
        run = kind(stage, microbatches, loss_fn=F.cross_entropy)
        first, last = seat.rank == 0, seat.rank == seat.size - 1

        def one_step(step: int) -> None:
            x, y = inputs[step % BATCHES]
            optimizer.zero_grad()
            run.step(*((x,) if first else ()), target=y if last else None, return_outputs=False)
            optimizer.step()

        seconds = _seconds(one_step, warmup, steps, seat.barrier.wait)
        seat.barrier.wait()  # nobody leaves while another still sends
    finally:
        dist.destroy_process_group()
    return seconds, _weights(module)


def batches(ready: Prepared) -> list[tuple[Tensor, Tensor]]:
    """The first global batches of a run, x (B, ...) and y (B,)."""
    return [ready.batches.batch(step) for step in range(BATCHES)]


def _sgd(model: Chain) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)


def _weights(model: Chain) -> dict[str, np.ndarray]:
    return {name: t.detach().numpy().copy() for name, t in model.original_state().items()}


def _with_threads(threads: int, one_step: Callable[[int], None], warmup: int, steps: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _seconds(one_step, warmup, steps)
    finally:
        torch.set_num_threads(before)


def _seconds(
    one_step: Callable[[int], None],
    warmup: int,
    steps: int,
    ready: Callable[[], object] = lambda: None,
) -> float:
    for step in range(warmup):
        one_step(step)
    ready()
    started = time.perf_counter()
    for step in range(warmup, warmup + steps):
        one_step(step)
    return time.perf_counter() - started
