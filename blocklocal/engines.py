"""The engine of a prepared run: actors on Ray, or one process."""

from __future__ import annotations

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.preparation import Prepared
from learning.data import Dataset
from learning.doing import doing
from orchestrator.chain import Chain
from orchestrator.engine import RayEngine
from orchestrator.events import Engine
from orchestrator.inline import InlineEngine, Probe

SHIPPED_BYTES = 16 * 2**20  # a larger data set is read where its batches are made


def engine_of(prepared: Prepared, probe: Probe | None = None) -> Engine:
    """Start what runs the program of a prepared run.

    Args:
        probe: looks at the sequential engine before each step with evaluations after it.
    """
    config, blocks = prepared.config, prepared.plan.units_of_blocks(prepared.units)
    if config.engine.kind == "sequential":
        return InlineEngine(
            prepared.program,
            blocks,
            prepared.batches,
            evaluation_batch=config.training.evaluation_batch,
            threads=prepared.threads,
            probe=probe,
        )
    doing(f"starting the actors of {len(blocks)} blocks")
    return RayEngine(
        Chain(
            prepared.program,
            prepared.plan,
            blocks,
            prepared.dataset if prepared.in_memory or _small(prepared.dataset) else config.data,
            config.data.augment,
            evaluation_batch=config.training.evaluation_batch,
            threads=prepared.threads,
            window=config.engine.window,
            transport=config.engine.transport,
            source=prepared.source,
            lanes=config.lanes.min,
            grows=config.lanes.max > 1 or config.engine.address is not None,
            patience=config.engine.recovery.patience,
            fingerprint=prepared.fingerprints.data,
        ),
        config.engine.recovery,
        config.lanes,
        config.engine.rebalance,
    )


def _small(dataset: Dataset) -> bool:
    """Whether the source gets these rows sooner from here than by reading them once more."""
    splits = (dataset.train, dataset.validation, dataset.test)
    return sum(s.nbytes for s in splits) <= SHIPPED_BYTES
