"""Where a sweep is connected to MLflow: what it says of itself, of its trials and of the best."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from blocklocal.config import RunConfig, dotted, make_config
from blocklocal.loading import load_checkpoint
from blocklocal.tracked_files import files_of
from orchestrator.rundir import RunDirectory
from orchestrator.version import code_version
from tuning.known import Known
from tuning.records import Outcome
from tuning.settings import SweepSettings
from tuning.space import Space
from tuning.sweep_tracking import SweepTracker
from tuning.trial_tracking import Description, Tracking
from tuning.waiting_files import QUEUE


def tracking_of(
    config: RunConfig, directory: Path, settings: SweepSettings, space: Space
) -> Tracking | None:
    """What feeds the trials of a sweep to MLflow; None where tracking is disabled.

    Args:
        config: that trials change.
        directory: of the sweep.

    Raises:
        UserError: when MLflow refuses the sweep.
    """
    if not config.tracking.enabled:
        return None
    known = Known(directory)
    parameters = {**dotted(config), **dotted(settings, "sweep.")}
    parameters |= {f"space.{d.key}": f"{d.kind} {d.extremes()}" for d in space}
    tags = {
        "network": config.network.kind,
        "scheduler": settings.scheduler.kind,
        "searcher": settings.searcher.kind,
        "commit": str(code_version()["git_commit"]),
    }
    name = config.tracking.run_name or directory.name
    tracker = SweepTracker(
        config.tracking,
        directory.parent,
        name,
        parameters,
        tags,
        known.run_id,
        queue=directory / QUEUE,
    )
    return Tracking(tracker, known, _describe)


def _describe(path: Path) -> Description:
    """What MLflow is told about the run of a trial."""
    run = RunDirectory.open(path)
    config = make_config(run.config)
    tags = {
        "rule": config.rule.kind,
        "network": config.network.kind,
        "plan": run.plan.hash(),
        "commit": str(code_version()["git_commit"]),
    }
    return Description(parameters_of(config), tags, partial(files_of, run))


def parameters_of(config: RunConfig) -> dict[str, Any]:
    """What is set in a trial by dotted key: the parent run has where it is written and tracked.

    MLflow reads every parameter of every trial of a list, so that each counts.
    """
    elsewhere = ("run.", "checkpoints.", "tracking.")
    return {
        key: value
        for key, value in dotted(config).items()
        if value is not None and not key.startswith(elsewhere)
    }


def track_best(tracking: Tracking, best: Outcome, name: str) -> None:
    """Log the model of the best trial, as it was at its last step.

    Args:
        name: of the registered model.
    """
    assert best.run is not None
    run = RunDirectory.open(best.run)
    step = run.checkpoints.resolve("last")
    trained = load_checkpoint(run, step)[1]
    tracking.best(f"{best.number:04d}", trained.from_raw(), trained.raw_example(), name)
