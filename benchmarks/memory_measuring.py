"""What one block keeps: bytes that torch counts, and resident memory as the kernel does."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.live_bytes import LiveBytes
from benchmarks.memory_blocks import STEPS, Case, learner_of, train_step
from blocklocal.compare.meters import StepMeter
from learning.messages import block_name


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
