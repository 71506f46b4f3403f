"""What came of a sweep, written into its directory: tables, pictures, `best.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from blocklocal.config import RunConfig, make_config
from blocklocal.sweep_file import SweepFile
from orchestrator.rundir import RunDirectory
from tuning.outcome import BEST, PAGE, TABLE, best_of, check_has_best, write_best, write_page
from tuning.outcome import write_table as write_trials
from tuning.pictures import draw
from tuning.records import Outcome
from tuning.sweep import read_outcomes

Say = Callable[[str], None]


def write_outcome(directory: Path, file: SweepFile, say: Say) -> tuple[Outcome, tuple[Path, ...]]:
    """Write the tables, the pictures and the best configuration of a sweep.

    Returns:
        The best trial, and the files.

    Raises:
        UserError: when no trial could be trained; the tables are written all the same.
    """
    settings, metric = file.settings, file.settings.metric
    outcomes = read_outcomes(directory)
    write_trials(directory / TABLE, outcomes, file.space.keys, metric)
    pictures = draw(directory, outcomes, file.space, metric, settings.better)
    best = best_of(outcomes, metric, settings.better, settings.stop.value)
    name = make_config(file.base).run.name
    write_page(directory / PAGE, name, outcomes, file.space, settings, pictures)
    best = check_has_best(best, outcomes)
    write_best(directory / BEST, best_tree(file, best), best, metric)
    say(f"best: trial {best.number:04d}, {metric} {best.last(metric):.6g}")
    say(f"wrote {directory / PAGE}, {TABLE}, {BEST} and {len(pictures)} pictures")
    return best, (directory / PAGE, directory / TABLE, directory / BEST, *pictures)


def best_tree(file: SweepFile, best: Outcome) -> dict[str, Any]:
    """The configuration that trains a trial again, to the bit.

    What decides bits is fixed as the trial had it, the cut and the number of threads; what a trial
    reserved and where it was kept is the sweep's own again.
    """
    assert best.run is not None
    run = RunDirectory.open(best.run)
    trial, base = make_config(run.config), make_config(file.base)
    cuts = tuple(block.units[0] for block in run.plan.blocks[1:])
    resources = base.engine.resources.model_copy(
        update={
            "threads": trial.engine.resources.threads,
            "gpus": trial.engine.resources.gpus,
        }
    )
    engine = base.engine.model_copy(update={"resources": resources})
    made = trial.model_copy(
        update={
            "run": base.run.model_copy(
                update={"name": f"{base.run.name}-best", "start": trial.run.start}
            ),
            "blocks": trial.blocks.model_copy(update={"at": cuts, "count": len(cuts) + 1}),
            "engine": engine,
            "tracking": base.tracking,
            "checkpoints": base.checkpoints,
        }
    )
    return RunConfig.model_validate(made.model_dump()).model_dump(mode="json")
