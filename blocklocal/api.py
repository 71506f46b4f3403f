"""The Python API: train a network and data that are in memory."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blocklocal.clusters import cluster
from blocklocal.config import dotted, make_config, overlay
from blocklocal.identity import check_settings, made_of
from blocklocal.preparation import prepare
from blocklocal.result import Result
from blocklocal.resuming import check_given
from blocklocal.signals import handled
from blocklocal.training import resume as go_on
from blocklocal.training import train
from learning.data import Dataset
from learning.errors import UserError
from orchestrator.rundir import RunDirectory, check_free
from orchestrator.trainer import Observer


@torch.inference_mode(False)
@torch.enable_grad()
def fit(
    model: nn.Module,
    data: Dataset,
    /,
    *,
    blocks: int | Sequence[str] | None = None,
    rule: str | Mapping[str, Any] | None = None,
    observers: Sequence[Observer] = (),
    resume: str | Path | None = None,
    checkpoint: int | None = None,
    **sections: Mapping[str, Any],
) -> Result:
    """Train an `nn.Sequential` block-locally.

    Args:
        model: maps (B, *input_shape) to (B, classes), or (B, T) tokens to (B, T, classes); its
            weights are trained in place.
        data: splits in memory, see `blocklocal.arrays_dataset`.
        blocks: how many, or the names of the units that start a new block; None: 2.
        rule: a rule's kind, or its settings; None: `local`.
        resume: directory of a run of the same model and data to go on with; settings that are not
            given are those of the run. `training={"steps": ...}` makes it longer.
        checkpoint: with `resume`, the step to go on from instead of the last checkpoint.
        sections: other sections of the configuration: `optimizer={"lr": 0.01}`, `training={...}`;
            of `data` only `augment`.

    On SIGTERM and SIGHUP the run keeps its state after the step under way, and so does it on
    Ctrl-C; a second signal ends it at once. Handlers of the caller are back afterwards.

    Raises:
        UserError: for anything that cannot be run.
        KeyboardInterrupt: after Ctrl-C.
        SystemExit: after SIGTERM and SIGHUP, with 143 and 129.
    """
    with handled() as stopping:
        try:
            return _fit(model, data, blocks, rule, observers, resume, checkpoint, sections)
        except KeyboardInterrupt:
            if stopping.asked:
                print(f"blocklocal: {stopping.sentence()}", file=sys.stderr)
            if stopping.number in (0, signal.SIGINT):
                raise
            raise SystemExit(stopping.code) from None


def _fit(
    model: nn.Module,
    data: Dataset,
    blocks: int | Sequence[str] | None,
    rule: str | Mapping[str, Any] | None,
    observers: Sequence[Observer],
    resume: str | Path | None,
    checkpoint: int | None,
    sections: Mapping[str, Mapping[str, Any]],
) -> Result:
    tree: dict[str, Any] = dict(sections)
    _check_given(model, data)
    _check_sections(tree)
    if blocks is not None:
        tree["blocks"] = {"count": blocks} if isinstance(blocks, int) else {"at": list(blocks)}
    if rule is not None:
        tree["rule"] = {"kind": rule} if isinstance(rule, str) else rule
    if resume is None:
        if checkpoint is not None:
            raise UserError("checkpoint goes with resume only: give both or leave it out")
        config = make_config(tree)
        if config.run.directory is not None:
            check_free(config.run.directory)
        with cluster(config):
            return train(prepare(config, model=model, dataset=data), observers)
    run = RunDirectory.open(resume)
    old, merged = make_config(run.config), run.config
    check_given(run, old, in_python=True)
    said = dotted(tree)
    for key, value in said.items():
        overlay(merged, key.split("."), value)
    config = make_config(merged)
    made = made_of(run)
    check_settings(made, run, config, said)
    with cluster(config):
        prepared = prepare(config, model=model, dataset=data, plan=run.plan, made=made)
        return go_on(prepared, run, observers, checkpoint, made=made)


def _check_given(model: object, data: object) -> None:
    """Refuse what is no network or no data, before a cluster starts."""
    if not isinstance(model, nn.Module):
        raise UserError(f"model is no nn.Module (it is a {type(model).__name__}): give a network")
    if not isinstance(data, Dataset):
        raise UserError(
            f"data are no Dataset (they are a {type(data).__name__}): give what "
            "blocklocal.arrays_dataset(x_train, y_train, x_test, y_test) makes of arrays"
        )


def _check_sections(tree: Mapping[str, Any]) -> None:
    """Refuse what the model and the data in memory would silently override."""
    if "network" in tree:
        raise UserError("fit trains the model it is given: leave the section network out")
    section = tree.get("data", {})
    if not isinstance(section, Mapping):
        raise UserError("fit takes model and data by position: fit(model, data, ...)")
    for name in section:
        if name != "augment":
            raise UserError(
                f"fit trains on the data it is given, which data.{name} does not change: leave it "
                "out, of the section data only augment is used, the rest is up to arrays_dataset"
            )
