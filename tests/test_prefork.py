"""The workers of the tests' Ray are forks, to whom PyTorch costs nothing, and can be ended."""

from __future__ import annotations

import os
import sys

import psutil
import ray


class _Worker:
    def __init__(self) -> None:
        self._had = "torch" in sys.modules

    def about(self) -> tuple[int, bool]:
        return os.getpid(), self._had


def test_a_worker_is_a_fork_that_has_pytorch_and_ends_when_it_is_killed(ray_cluster: None) -> None:
    actor = ray.remote(num_cpus=0)(_Worker).remote()
    number, had_pytorch = ray.get(actor.about.remote(), timeout=600)
    assert had_pytorch
    process = psutil.Process(number)
    parent = process.parent()
    assert parent is not None and "tests.prefork" in parent.cmdline()
    ray.kill(actor)
    process.wait(120)
