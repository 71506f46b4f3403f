"""What a node says of itself, and whether it has the versions that this process has."""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
from typing import NamedTuple

from blocklocal.doctor.check import Check

SHARED_MEMORY = "/dev/shm"
PACKAGES = ("ray", "torch", "numpy", "safetensors", "blocklocal")


class Report(NamedTuple):
    """What a machine says of itself.

    Attributes:
        versions: of Python and of packages; None for one that is not there.
        shared_memory: bytes of the file system that object stores lie in; None where there is none.
    """

    versions: dict[str, str | None]
    shared_memory: int | None


def report() -> Report:
    """What this machine says of itself."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            # Without the build: a head without GPUs may have PyTorch's for CPUs.
            versions[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    try:
        shared = shutil.disk_usage(SHARED_MEMORY).total
    except FileNotFoundError:
        shared = None
    return Report(versions, shared)


def compare(name: str, here: Report, there: Report) -> Check:
    """Whether a node has the versions that this process has."""
    differ = [
        f"{package} {there.versions.get(package) or 'is missing'} (here {version or 'none'})"
        for package, version in here.versions.items()
        if there.versions.get(package) != version
    ]
    if differ:
        fix = "install the same there with pip install -c constraints.txt and restart Ray on it"
        return Check(name, False, ", ".join(differ), fix)
    said = ", ".join(f"{p} {there.versions[p]}" for p in ("python", "ray", "torch"))
    return Check(name, True, said)


def unanswered(name: str, why: str) -> Check:
    """A node that says nothing of itself."""
    return Check(
        name, False, why, "install blocklocal there as cluster.yaml does, or take the node out"
    )
