"""Where a sweep is connected to MLflow; without tracking nothing of it is imported."""

from __future__ import annotations

from pathlib import Path

from blocklocal.config import RunConfig
from tuning.following import Tracking
from tuning.settings import SweepSettings


def tracking_of(config: RunConfig, directory: Path, settings: SweepSettings) -> Tracking | None:
    """What feeds the trials of a sweep to MLflow; None where tracking is disabled."""
    return None
