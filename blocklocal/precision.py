"""`precision.compute=auto`: chosen once, before anything depends on it, and written down.

All actors, a resumed run and every run of a study or sweep compute in the type that was chosen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from blocklocal.config import RunConfig, make_config
from learning.compute_type import fast_on_gpu, measured


def cores() -> int:
    """Processor cores that this process may use, where the system can tell."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(config: RunConfig) -> int:
    """Threads of each block: those that are set, or its part of this machine's cores."""
    return config.engine.resources.threads or max(1, cores() // config.blocks.count)


def with_compute(config: RunConfig) -> RunConfig:
    """The configuration with the type that is faster here, where it leaves that open."""
    if config.precision.compute != "auto":
        return config
    on_gpu = config.engine.kind == "ray" and config.engine.resources.gpus > 0
    chosen = fast_on_gpu() if on_gpu else measured(threads_of(config)).faster
    precision = config.precision.model_copy(update={"compute": chosen})
    return config.model_copy(update={"precision": precision})


def settled(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of settings with the type that is faster here, where it leaves that open."""
    precision = tree.get("precision")
    if not isinstance(precision, Mapping) or precision.get("compute") != "auto":
        return dict(tree)
    chosen = with_compute(make_config(tree)).precision.compute
    return {**tree, "precision": {**precision, "compute": chosen}}
