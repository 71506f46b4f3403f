"""The command line: `blocklocal train|tune|eval|export|plan|timeline|compare|track|doctor`."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import yaml
from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from actors.memory import keep_freed_memory
from blocklocal import sending, simulating
from blocklocal.clusters import cluster
from blocklocal.config import RunConfig, load_config, make_config
from blocklocal.doctor.examination import examine
from blocklocal.doctor.network import MESSAGE_BYTES
from blocklocal.inference import evaluate_model, load_run
from blocklocal.observers import Progress
from blocklocal.preparation import Prepared, prepare
from blocklocal.resuming import check_given, check_resumable, start_of
from blocklocal.sweep_command import tune_command
from blocklocal.training import Result, resume, train
from learning.errors import UserError
from learning.rules import Backprop
from orchestrator.costs import measure_costs, uncompiled
from orchestrator.findings import sentences
from orchestrator.findings import table as cost_table
from orchestrator.losses import ActorLostError
from orchestrator.rundir import RunDirectory
from orchestrator.tensors import export as export_state
from orchestrator.trace import concurrency, idle_shares, read_spans, write_trace

app = App(
    name="blocklocal",
    help="Train networks as blocks that learn from local losses.",
    suppress_keyboard_interrupt=False,  # `main` says how to go on
)
console = Console()

Which = Annotated[
    str | None, Parameter(help="best, last or a step; by default best where there is one")
]


def _say(text: str) -> None:
    """Print as it is: rich would fold long lines and take square brackets for markup."""
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _configuration(words: tuple[str, ...]) -> RunConfig:
    """A YAML file first, if any, then settings."""
    path = Path(words[0]) if words and "=" not in words[0] else None
    return load_config(path, words[1:] if path else words)


app.command(tune_command, name="tune")


@app.command(name="train")
def train_command(
    *words: Annotated[str, Parameter(help="a YAML file, then dotted.key=value settings")],
    resume_run: Annotated[Path | None, Parameter(name="--resume", help="a run directory")] = None,
    checkpoint: Annotated[
        str | None, Parameter(help="resume from best, last or a step; by default last")
    ] = None,
    dry_run: Annotated[bool, Parameter(help="print configuration and plan only")] = False,
) -> None:
    """Train a network, or go on with a run."""
    if resume_run is not None and dry_run:
        raise UserError("--dry-run does not go with --resume: leave one of them out")
    if resume_run is not None:
        _resume(resume_run, words, checkpoint)
        return
    if checkpoint is not None:
        raise UserError("--checkpoint goes with --resume only: give both or leave it out")
    config = _configuration(words)
    with cluster(config):
        prepared = prepare(config)
        if dry_run:
            _say(yaml.safe_dump(prepared.config.model_dump(mode="json"), sort_keys=False))
        console.print(prepared.plan.table())
        if dry_run:
            return
        with Progress(console, 0, prepared.schedule.steps) as progress:
            result = train(prepared, [progress])
    _closing(result, progress)


def _resume(path: Path, words: tuple[str, ...], checkpoint: str | None) -> None:
    run = RunDirectory.open(path)
    old = make_config(run.config)
    check_given(run, old, in_python=False)
    config = load_config(None, words, base=run.config)
    check_resumable(old, config)
    start = start_of(run, checkpoint)
    with cluster(config):
        prepared = prepare(config, plan=run.plan)
        _say(f"resuming {path} at step {start} of {prepared.schedule.steps}")
        with Progress(console, start, prepared.schedule.steps) as progress:
            result = resume(prepared, run, [progress], start or None)
    _closing(result, progress)


def _closing(result: Result, progress: Progress) -> None:
    table = Table()
    table.add_column("block")
    splits = sorted({name.split("/")[0] for name in result.metrics}, reverse=True)
    for split in splits:
        table.add_column(f"{split} accuracy", justify="right")
        table.add_column(f"{split} loss", justify="right")
    for block in result.plan.blocks:
        name = f"block{block.index}"
        cells = []
        for split in splits:
            accuracy = result.metrics.get(f"{split}/{name}/accuracy")
            loss = result.metrics.get(f"{split}/{name}/loss")
            cells += [
                "" if accuracy is None else f"{accuracy:.2%}",
                "" if loss is None else f"{loss:.4f}",
            ]
        table.add_row(name, *cells)
    console.print(table)
    _say(f"run directory: {result.directory}")
    _say(f"{progress.rate():.1f} steps/s")


@app.command(name="eval")
def eval_command(
    run: Path,
    *,
    split: str = "test",
    checkpoint: Which = None,
) -> None:
    """Evaluate a run's checkpoint (`best`, `last` or a step) on a split, as one plain module."""
    directory = RunDirectory.open(run)
    step = _step(directory, checkpoint)
    config, dataset, model = load_run(directory, step)
    loss, accuracy = evaluate_model(model, dataset, split, config)
    _say(f"step {step}  {split} accuracy {accuracy:.4%}  loss {loss:.6f}")


@app.command(name="export")
def export_command(run: Path, output: Path, *, checkpoint: Which = None) -> None:
    """Write a checkpoint as one safetensors state_dict of the original module."""
    directory = RunDirectory.open(run)
    step = _step(directory, checkpoint)
    export_state(directory.checkpoints.load(step).state, output)
    _say(f"wrote {output} (step {step})")


def _step(run: RunDirectory, checkpoint: str | None) -> int:
    """The step of a checkpoint; without validation rows no checkpoint is the best one."""
    which = checkpoint or ("last" if run.checkpoints.best is None else "best")
    return run.checkpoints.resolve(which)


@app.command(name="plan")
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
    prepared = prepare(_configuration(words))
    console.print(prepared.plan.table())
    _limits(prepared)
    if simulate:
        rows = simulating.predict(prepared, machines, numbers, _say)
        console.print(simulating.table(rows, prepared.config.training.shards))
        if picture is not None:
            simulating.save(rows, picture, machines)
            _say(f"wrote {picture} and {picture.with_suffix('.json')}")
    if save is not None:
        simulating.check_free(save)  # it may be new
        try:
            prepared.plan.save(save)
        except OSError as error:
            raise UserError(f"cannot write {save} ({error.strerror}): choose another") from error


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
        _say(sentence)


@app.command(name="timeline")
def timeline_command(run: Path) -> None:
    """Write a run's timeline: trace.json for Perfetto, and timeline.png."""
    from orchestrator.timeline import draw  # here, as in `compare`: training does without pictures

    directory = RunDirectory.open(run)
    spans = read_spans(directory.path / "spans.jsonl")
    if not spans:
        raise UserError(f"{run} has no spans yet: train at least one step")
    write_trace(spans, directory.path / "trace.json")
    draw(spans, directory.path / "timeline.png")
    together = concurrency(spans)
    _say(f"wrote {directory.path / 'trace.json'} and timeline.png")
    for actor, idle in idle_shares(spans).items():
        _say(f"  {actor}: idle {idle:.0%}")
    _say(
        f"  two or more blocks at work {together.share:.0%} of the time, "
        f"up to {together.steps_apart} steps apart"
    )


@app.command(name="compare")
def compare_command(
    study: Path,
    *words: Annotated[str, Parameter(help="dotted.key=value settings over the study's base")],
    directory: Annotated[
        Path | None, Parameter(help="of the results; by default the study's, or studies/<name>")
    ] = None,
    workers: Annotated[int | None, Parameter(help="runs at once")] = None,
    adopt: Annotated[Path | None, Parameter(help="take runs of a JSON file into the study")] = None,
    report: Annotated[bool, Parameter(help="only write the report of the runs there are")] = False,
    dry_run: Annotated[bool, Parameter(help="check everything, list what would run")] = False,
) -> int:
    """Run a study, rules x networks x blocks x seeds, or go on with it; write its report."""
    from blocklocal.compare.command import INTERRUPTED, Comparison

    if workers is not None and workers < 1:
        raise UserError(f"--workers = {workers} is not possible: give 1 or more")
    if sum((adopt is not None, report, dry_run)) > 1:
        raise UserError("--adopt, --report and --dry-run do not go together: give one of them")
    comparison = Comparison.open(study, words, directory)
    if adopt is not None:
        added, found = comparison.adopt(adopt)
        _say(f"{found} runs of {adopt} belong to this study, {added} of them new")
    if dry_run:
        comparison.check(jobs := comparison.missing())
        for job in jobs:
            _say(f"would run: {job.label}")
        return 0
    code = 0 if report or adopt else comparison.complete(workers, console)
    if code != INTERRUPTED and (code == 0 or comparison.has_runs()):
        comparison.report()
        _say(f"wrote {comparison.directory / 'report.md'}")
    return code


@app.command(name="track")
def track_command(
    run: Path,
    *,
    uri: Annotated[str | None, Parameter(help="of MLflow, instead of the run's")] = None,
) -> None:
    """Send MLflow what waits in a run's or a sweep's directory since MLflow did not answer."""
    sent, refused = sending.send(run, uri)
    _say(f"sent {sent} records to MLflow" if sent else f"nothing in {run} waits for MLflow")
    if refused is not None:
        _say(f"MLflow has refused some records: they are in {refused}")


@app.command(name="doctor")
def doctor_command(
    *words: Annotated[str, Parameter(help="a YAML file, then settings: check for this run too")],
    address: Annotated[str | None, Parameter(help="of a Ray cluster; by default the run's")] = None,
    message: Annotated[int, Parameter(help="bytes to measure the network with")] = MESSAGE_BYTES,
) -> int:
    """Check this machine, or a cluster and whether a run would do there; exit code 1 if not."""
    if message < 1:
        raise UserError(f"--message = {message} is not possible: give 1 byte or more")
    config = _configuration(words)
    where = {"kind": "ray", "address": address or config.engine.address}
    engine = config.engine.model_copy(update=where)
    config = config.model_copy(update={"engine": engine})
    failed = 0
    for check in examine(config, run=bool(words), message=message):
        _say(f"{check.name}: {check}")
        failed += not check.ok
    _say(f"{failed} checks failed" if failed else "everything is ok")
    return 1 if failed else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; user errors are one sentence on standard error and exit code 2."""
    keep_freed_memory()
    if sys.path[0] != (here := str(Path.cwd())):
        sys.path.insert(0, here)  # the user's own networks live beside their YAML
    with suppress(RuntimeError):  # torch takes this once a process, before its first work
        torch.set_num_interop_threads(1)
    try:
        code = app(
            sys.argv[1:] if arguments is None else arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (UserError, CycloptsError) as error:
        print("\n".join([f"blocklocal: {error}", *_notes(error)]), file=sys.stderr)
        return 2
    except ActorLostError as error:
        text = f"blocklocal: {error}; go on with --resume"
        print("\n".join([text, *_notes(error)]), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("blocklocal: interrupted; go on with --resume", file=sys.stderr)
        return 130
    return code if isinstance(code, int) else 0


def _notes(error: BaseException) -> list[str]:
    """What else went wrong on the way out."""
    return list(getattr(error, "__notes__", []))


if __name__ == "__main__":
    sys.exit(main())
