"""What this process runs on."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from blocklocal.doctor.check import Check
from blocklocal.doctor.versions import Report
from blocklocal.precision import cores
from learning.compute_type import measured


def check_here(said: Report) -> Iterator[Check]:
    """Packages and devices; there is nothing wrong with them by themselves."""
    for package, version in said.versions.items():
        yield Check(package, True, version or "not installed, run from its files")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield Check("GPUs here", True, ", ".join(gpus) or "none")
    yield Check("precision.compute here", True, f"{measured(cores())} in {cores()} threads")
