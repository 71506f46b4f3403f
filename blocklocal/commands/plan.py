"""The command `blocklocal plan`: cuts, costs, what limits a run, and what more devices would do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import Parameter

from blocklocal import simulating
from blocklocal.commands.terminal import configuration, console, say
from blocklocal.preparation import Prepared, prepare
from learning.compute_type import measured
from learning.errors import UserError
from learning.rules import Backprop
from orchestrator.costs import measure_costs, uncompiled
from orchestrator.findings import sentences
from orchestrator.findings import table as cost_table


def plan_command(
    *words: Annotated[str, Parameter(help="a YAML file, then dotted.key=value settings")],
    save: Annotated[Path | None, Parameter(help="also write the plan as JSON")] = None,
    simulate: Annotated[bool, Parameter(help="predict every schedule on more devices")] = False,
    described: Annotated[
        Path | None, Parameter(name="--cluster", help="YAML of a cluster; else messages are free")
    ] = None,
    devices: Annotated[str | None, Parameter(help="how many, such as 2,8,64,1024")] = None,
    picture: Annotated[Path | None, Parameter(help="of the prediction, with JSON beside")] = None,
) -> None:
    """Print how a network is cut into blocks, and with --simulate what more devices would do."""
    if not simulate and (described, devices, picture) != (None, None, None):
        raise UserError("--cluster, --devices and --picture go with --simulate: add it")
    machines = simulating.described(described)
    numbers = simulating.counts(devices, machines) if simulate else []
    simulating.check_picture(picture)
    simulating.check_free(save)
    prepared = prepare(configuration(words), profile=True)
    console.print(prepared.plan.table())
    if prepared.config.engine.resources.gpus == 0:
        say(f"{measured(prepared.threads)} in {prepared.threads} threads of this processor")
    _limits(prepared)
    if simulate:
        rows = simulating.predict(prepared, machines, numbers, say)
        console.print(simulating.table(rows, prepared.config.training.shards))
        if picture is not None:
            simulating.save(rows, picture, machines)
            say(f"wrote {picture} and {picture.with_suffix('.json')}")
    if save is not None:
        simulating.check_free(save)  # it may be new
        prepared.plan.save(save)


def _limits(prepared: Prepared) -> None:
    """Measure the operations of the run here; say what they cost and what limits it.

    Blocks run as written, also where the run compiles them.
    """
    program = uncompiled(prepared.program)
    blocks = prepared.plan.units_of_blocks(prepared.units)
    gpus = prepared.config.engine.resources.gpus > 0 and torch.cuda.is_available()
    measure = partial(
        measure_costs,
        blocks=blocks,
        batches=prepared.batches,
        threads=prepared.threads,
        device=torch.device("cuda" if gpus else "cpu"),
    )
    costs, plain = measure(program), None
    if not isinstance(program.rule, Backprop):
        plain = measure(replace(program, rule=Backprop()))
    console.print(cost_table(program, costs))
    for sentence in sentences(program, costs, plain):
        say(sentence)
