"""`blocklocal plan --simulate`: what each schedule would make of more devices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

import blocklocal.confined  # noqa: F401 - before others import Ray
from blocklocal.preparation import Prepared
from blocklocal.scaling_picture import draw
from blocklocal.simulating_schedules import ScheduleChoice, schedules
from learning.build import Program
from learning.checks import check_program
from learning.errors import UserError
from orchestrator.clusters import ClusterDescription
from orchestrator.costs import Costs, measure_costs, uncompiled
from orchestrator.files import write_file
from orchestrator.plan import human_bytes
from orchestrator.settings import SourcePlace
from orchestrator.simulation import alone, in_turns, simulate
from orchestrator.simulation_machine import Prediction
from orchestrator.simulation_scale import scale, widen

COUNTS = (2, 8, 64, 1024)
MAKERS: dict[SourcePlace, str] = {"block1": "block 1", "actor": "an actor of their own"}


@dataclass(frozen=True)
class Row:
    """A schedule on a number of devices.

    Attributes:
        source: who makes the batches.
        speed_up: over one such device that does all operations itself, without messages.
    """

    schedule: str
    devices: int
    source: SourcePlace
    speed_up: float
    prediction: Prediction

    @property
    def idle(self) -> float:
        """Share of the time, mean over devices."""
        return sum(self.prediction.idle) / len(self.prediction.idle)

    @property
    def record(self) -> dict[str, object]:
        """The row for JSON."""
        p = self.prediction
        return {
            "schedule": self.schedule,
            "devices": self.devices,
            "source": self.source,
            "steps_per_second": p.steps_per_second,
            "speed_up": self.speed_up,
            "idle_share": self.idle,
            "peak_bytes": max(p.peak_bytes),
            "bytes_a_step": p.bytes_a_step,
            "limit": p.limit,
            "steps": len(p.completions),
            "simulation_seconds": p.seconds,
        }


def counts(text: str | None, cluster: ClusterDescription) -> list[int]:
    """The numbers of devices to predict for.

    Raises:
        UserError: for text that is no list of numbers from 2 to what the cluster has.
    """
    if text is None:
        found = [n for n in COUNTS if n <= cluster.total]
        if not found:
            raise UserError(
                f"the cluster has {cluster.total} devices and a prediction takes at least 2: "
                "describe more nodes"
            )
        return found
    try:
        numbers = sorted({int(word) for word in text.split(",")})
    except ValueError as error:
        raise UserError(f"--devices = {text!r} is no list of numbers: write 2,8,64") from error
    for n in numbers:
        if not 2 <= n <= cluster.total:
            raise UserError(
                f"--devices = {n} is not possible: give 2 to {cluster.total}, which the cluster "
                "has, or describe more nodes"
            )
    return numbers


def described(path: Path | None) -> ClusterDescription:
    """The cluster of a file; without one messages are free, and what is predicted is a bound."""
    if path is not None:
        return ClusterDescription.load(path)
    return ClusterDescription(nodes=max(COUNTS))


def check_free(path: Path | None) -> None:
    """Refuse a file that exists, before anything takes time.

    Raises:
        UserError: when it does.
    """
    if path is not None and path.exists():
        raise UserError(f"{path} exists: choose another file or remove it")


def check_picture(picture: Path | None) -> None:
    """Refuse a picture that exists, before anything takes time.

    Raises:
        UserError: when it, or the JSON file beside it, exists, or it has another suffix.
    """
    if picture is None:
        return
    if picture.suffix != ".png":
        raise UserError(f"--picture = {picture} is no .png file: name it so")
    check_free(picture)
    check_free(picture.with_suffix(".json"))


def predict(
    prepared: Prepared,
    cluster: ClusterDescription,
    numbers: Sequence[int],
    say: Callable[[str], None],
) -> list[Row]:
    """Measure each rule here and simulate each schedule on each number of devices.

    The batches are made where the run would make them. A schedule that cannot be measured on this
    network is left out, with the reason said.
    """
    say(f"batches are made by {MAKERS[prepared.source]} (engine.source={prepared.source})")
    rows: list[Row] = []
    measured: dict[str, Costs] = {}
    for choice in schedules(prepared.config.rule):
        program = uncompiled(replace(prepared.program, rule=choice.rule))
        settings = choice.rule.model_copy(update={"order": "1f1b"}).model_dump_json()
        try:
            if settings not in measured:
                measured[settings] = _measure(prepared, program)
            rows += _predict(choice, program, measured[settings], cluster, numbers, prepared)
        except UserError as error:
            say(f"{choice.name} is left out: {error}")
    return rows


def _measure(prepared: Prepared, program: Program) -> Costs:
    gpus = prepared.config.engine.resources.gpus > 0 and torch.cuda.is_available()
    blocks = prepared.plan.units_of_blocks(prepared.units)
    rows = program.settings.batch // program.settings.shards
    check_program(program, blocks, prepared.batches.shard(0, 0)[0][:rows])
    return measure_costs(
        program,
        blocks,
        prepared.batches,
        threads=prepared.threads,
        device=torch.device("cuda" if gpus else "cpu"),
    )


def _predict(
    choice: ScheduleChoice,
    program: Program,
    measured: Costs,
    cluster: ClusterDescription,
    numbers: Sequence[int],
    prepared: Prepared,
) -> Iterator[Row]:
    """One row for each number of devices: a block on each, or `stages` parts of one."""
    for n in numbers:
        blocks = n * choice.stages
        wide = widen(program, blocks)
        costs = scale(measured, program, blocks, share=1 / choice.stages)
        prediction = simulate(
            wide,
            costs,
            cluster,
            in_turns(blocks, n),
            source=prepared.source,
            window=prepared.config.engine.window,
        )
        one = alone(wide, costs, cluster, prepared.source)
        yield Row(choice.name, n, prepared.source, prediction.steps_per_second * one, prediction)


def table(rows: Sequence[Row], shards: int) -> Table:
    """Rows for people."""
    made = Table(title=f"predicted, {shards} shards a step, a block a device")
    made.add_column("schedule", no_wrap=True)
    for name in ("devices", "steps/s", "speed-up", "idle", "memory a device"):
        made.add_column(name, justify="right")
    made.add_column("limit")
    for row in rows:
        made.add_row(
            row.schedule,
            str(row.devices),
            f"{row.prediction.steps_per_second:.4g}",
            f"{row.speed_up:.1f}",
            f"{row.idle:.0%}",
            human_bytes(max(row.prediction.peak_bytes)),
            row.prediction.limit,
        )
    return made


def save(rows: Sequence[Row], picture: Path, cluster: ClusterDescription) -> None:
    """Write the picture, and the rows and the cluster as JSON beside it.

    Raises:
        UserError: when a file exists or cannot be written.
    """
    check_picture(picture)
    series: dict[str, list[tuple[int, float, float]]] = {}
    for row in rows:
        rate = row.prediction.steps_per_second
        series.setdefault(row.schedule, []).append((row.devices, rate, row.speed_up / row.devices))
    record = {
        "cluster": json.loads(cluster.model_dump_json()),  # an infinite bandwidth is null
        "predictions": [row.record for row in rows],
    }
    try:
        write_file(picture, [draw(series)])
        text = json.dumps(record, indent=1) + "\n"
        write_file(picture.with_suffix(".json"), [text.encode()])
    except OSError as error:
        raise UserError(f"cannot write {picture} ({error.strerror}): choose another") from error
