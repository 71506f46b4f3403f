"""Commands on what a run has trained: `blocklocal eval|export`, without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from blocklocal.commands.terminal import say
from blocklocal.identity import check_checkpoint, made_of
from blocklocal.inference import evaluate_model, load_run
from blocklocal.loading import step_of
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import export as export_state

Which = Annotated[
    str | None, Parameter(help="best, last or a step; by default best where there is one")
]


def eval_command(
    run: Path,
    *words: Annotated[str, Parameter(help="data.key=value settings, for other data")],
    split: str = "test",
    checkpoint: Which = None,
) -> None:
    """Evaluate a run's checkpoint (`best`, `last` or a step) on a split, as one plain module."""
    directory = RunDirectory.open(run)
    step = step_of(directory, checkpoint)
    config, dataset, trained = load_run(directory, step, words)
    loss, accuracy = evaluate_model(trained.model, dataset, split, config)
    if words:
        say(f"on other data than {run} was trained with: {' '.join(words)}")
    say(f"step {step}  {split} accuracy {accuracy:.4%}  loss {loss:.6f}")


def export_command(run: Path, output: Path, *, checkpoint: Which = None) -> None:
    """Write a checkpoint as one safetensors state_dict of the original module.

    Its metadata say how raw rows are preprocessed.
    """
    directory = RunDirectory.open(run)
    step = step_of(directory, checkpoint)
    made = made_of(directory)
    found = directory.checkpoints.load(step)
    check_checkpoint(made, found)
    if found.preprocessing is None:
        print(
            f"blocklocal: warning: checkpoint {step} of {run} was written by a version that kept "
            f"no preprocessing, so {output} has none",
            file=sys.stderr,
        )
    export_state(found.state, output, found.preprocessing)
    say(f"wrote {output} (step {step})")
