"""What code runs on what machine, for the records of a run."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch


def code_version(source: Path = Path(__file__)) -> dict[str, Any]:
    """What code runs on what machine; what cannot be found out is None.

    Args:
        source: a file of the code; the git commit counts only where git tracks this file, since
            an installed copy may lie inside the checkout of something else.
    """
    tracked = _git(source, "ls-files", "--error-unmatch", source.name) is not None
    commit = _git(source, "rev-parse", "HEAD") if tracked else None
    changes = _git(source, "status", "--porcelain") if commit else None
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    return {
        "package": _installed("blocklocal"),
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "ray": _installed("ray"),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "gpus": [torch.cuda.get_device_name(i) for i in gpus],
    }


def processor() -> str:
    """What this machine computes with, in words."""
    with suppress(OSError):  # Linux only
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _git(source: Path, *arguments: str) -> str | None:
    # Inside a git hook GIT_DIR and its like name another repository than that of the source.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(source.parent), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
