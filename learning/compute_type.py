"""Which type computes faster here: float32, or bfloat16 under autocast.

A processor with instructions for bfloat16 takes half of float32's time; one without takes several
times as long, because every product is emulated.
"""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from learning.doing import doing

Compute = Literal["float32", "bfloat16"]
REPEATS = 3
LEAST_GAIN = 1.1
"""How many times as fast bfloat16 must be to be chosen: its results are coarser."""


@dataclass(frozen=True)
class Speeds:
    """Seconds of one forward and backward pass of a convolution and a product of matrices."""

    float32: float
    bfloat16: float

    @property
    def faster(self) -> Compute:
        """The type to compute in where nothing else decides."""
        return "bfloat16" if self.float32 >= LEAST_GAIN * self.bfloat16 else "float32"

    def __str__(self) -> str:
        ratio = self.float32 / self.bfloat16
        if ratio >= 1:
            return f"bfloat16 is {ratio:.1f} times as fast as float32"
        return f"float32 is {1 / ratio:.1f} times as fast as bfloat16"


@functools.cache
def measured(threads: int) -> Speeds:
    """Measure once a process, for about a second, in as many threads as a block has."""
    doing("measuring whether float32 or bfloat16 is faster here")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return Speeds(_seconds(False), _seconds(True))
    finally:
        torch.set_num_threads(before)


def fast_on_gpu() -> Compute:
    """The type for GPUs: bfloat16, unless one is here that only emulates it."""
    if torch.cuda.is_available() and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float32"
    return "bfloat16"


def _seconds(bfloat16: bool) -> float:
    """The shortest of a few passes, after one that does not count: kernels are chosen in it."""
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(*shape, generator=generator, requires_grad=True)
        for shape in ((16, 64, 16, 16), (64, 64, 3, 3), (256, 512), (512, 512))
    ]
    with torch.enable_grad():
        return min(_pass(tensors, bfloat16) for _ in range(1 + REPEATS))


def _pass(tensors: list[Tensor], bfloat16: bool) -> float:
    image, kernel, rows, matrix = tensors
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        made = F.conv2d(image, kernel, padding=1).float().mean() + (rows @ matrix).float().mean()
    torch.autograd.grad(made, tensors)
    return time.perf_counter() - started
