"""What the benchmarks of losses share: training that is watched, and how its results are kept."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from actors.operations import Span
from benchmarks import records
from benchmarks.workloads import Workload, configuration, prepared
from blocklocal.config import make_config, overlay
from blocklocal.training import train
from orchestrator.events import Metrics
from orchestrator.incidents import Incident
from orchestrator.rundir import RunDirectory
from orchestrator.settings import Transport
from orchestrator.trainer import Observer

WARMUP = 20  # steps: connections are made, memory is touched
MANY = 1_000_000  # steps, of a run that is ended by the clock

State = dict[str, dict[str, Tensor]]


class EnoughError(Exception):
    """A run has been watched for long enough."""


@dataclass
class Watch(Observer):
    """An observer with a clock.

    Attributes:
        enough: seconds after the first step at which it ends the run.
        times: Unix seconds at which the driver heard of each step for the first time.
        ended: those at which the last block ended its first update of each step.
        incidents: with the Unix seconds at which the first new step was there.
    """

    enough: float | None = None
    times: list[float] = field(default_factory=list)
    ended: dict[int, float] = field(default_factory=dict)
    incidents: list[tuple[float, Incident]] = field(default_factory=list)
    last_block: str = "block2"

    def stepped(self, step: int, metrics: Metrics) -> None:
        self.times.append(time.time())
        if self.enough is not None and self.times[-1] - self.times[0] > self.enough:
            raise EnoughError

    def worked(self, actor: str, spans: Sequence[Span]) -> None:
        if actor == self.last_block:
            for span in spans:
                if span.kind == "U":
                    self.ended.setdefault(span.step, span.ended / 1e9)

    def recovered(self, incident: Incident) -> None:
        self.incidents.append((time.time(), incident))

    def rate(self) -> float:
        """Steps a second from the end of the warm-up until the driver heard of the last step.

        Its last step is told after all snapshots but the newest are written, which therefore count.
        """
        return (len(self.times) - WARMUP) / (self.times[-1] - self.ended[WARMUP - 1])


def trained(
    workload: Workload,
    steps: int,
    observers: Sequence[Observer],
    *,
    every: int | None,
    transport: Transport = "direct",
    settings: Mapping[str, Any] | None = None,
) -> tuple[int, State]:
    """Train a workload on the cluster that is connected, to the end or until it is watched enough.

    Args:
        every: steps between snapshots; None: only that at the end.
        settings: further ones by dotted key.

    Returns:
        The step of the last snapshot and the state of all learners in it; 0 and none without any.
    """
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run"
        tree = configuration(workload, steps, transport=transport).model_dump(mode="json")
        changes = {
            "run.directory": str(path),
            "training.evaluate_every": steps,
            "checkpoints.every": every,
            **(settings or {}),
        }
        for key, value in changes.items():
            overlay(tree, key.split("."), value)
        with suppress(EnoughError):
            train(prepared(workload, make_config(tree)), observers)
        checkpoints = RunDirectory.open(path).checkpoints
        last = checkpoints.last
        return (0, {}) if last is None else (last, checkpoints.load(last).state)


def calibrated(
    workload: Workload, seconds: float, *, every: int | None, transport: Transport = "direct"
) -> float:
    """Steps a second of the last block, in a run of so many seconds.

    Raises:
        ValueError: when these are over before the warm-up is.
    """
    watch = Watch(enough=seconds)
    trained(workload, MANY, [watch], every=every, transport=transport)
    last = max(watch.ended)
    if last < WARMUP:
        raise ValueError(f"step {last} after {seconds:g} s: calibrate for longer")
    return (last + 1 - WARMUP) / (watch.ended[last] - watch.ended[WARMUP - 1])


def same_bits(left: State, right: State) -> bool:
    """Whether two states have the same tensors."""
    return left.keys() == right.keys() and all(
        left[name].keys() == right[name].keys()
        and all(torch.equal(t, right[name][n]) for n, t in left[name].items())
        for name in left
    )


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all of these benchmarks have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--transport", default="direct", choices=get_args(Transport))
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--quick", action="store_true", help="tiny, to see that it works")
    made.add_argument(
        "--results",
        type=Path,
        help=f"directory; by default {records.RESULTS}, with --quick none",
    )
    return made


def keep(name: str, record: dict[str, Any], page: str, options: argparse.Namespace) -> None:
    """Write the results of a run, but of a quick one only where it was asked for."""
    if options.quick and options.results is None:
        print(page)
    else:
        records.write(name, record, page, options.results or records.RESULTS)
