"""Freed tensors are used again without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from actors.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def steps(n):  # gradients of four layers of 4 MiB, scaled into new memory: 8192 pages
    for _ in range(n):
        gradients = [torch.ones(1024, 1024) for _ in range(4)]
        gradients = [g / 3 for g in gradients]

steps(5)
before = faults()
steps(100)
print((faults() - before) / 100)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's setting")
def test_freed_memory_is_used_again() -> None:
    found = {
        how: float(subprocess.check_output([sys.executable, "-c", SCRIPT, how], text=True))
        for how in ("keep", "default")
    }
    # Page faults a step. By default hundreds, else actors/memory.py is not needed any more.
    assert found["keep"] < 0.6 * found["default"]
