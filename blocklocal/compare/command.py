"""`blocklocal compare`: check everything, run what is missing, write the report."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from rich.console import Console

from blocklocal.compare.adopting import belonging, labels_of, read_runs
from blocklocal.compare.pictures import draw
from blocklocal.compare.progress import StudyProgress
from blocklocal.compare.records import Record, Records, check_directory, locked
from blocklocal.compare.report import page
from blocklocal.compare.runner import Failure, Job, Result, run_jobs
from blocklocal.compare.study import Combination, Key, Study, expand, load_study
from blocklocal.compare.summary import Summary, metric_of, summarise, value_of
from blocklocal.preparation import prepare
from blocklocal.signals import handled
from learning.data import Dataset, DataSettings
from learning.doing import doing
from learning.errors import UserError
from orchestrator.record_files import replace_record
from orchestrator.version import code_version

TORCH = str(torch.__version__)


@dataclass
class Comparison:
    """A study whose every setting is checked, and the directory of its results.

    Attributes:
        command: how it was called, for the records; without where data lie.
    """

    study: Study
    combinations: list[Combination]
    directory: Path
    command: str

    @classmethod
    def open(cls, path: Path, words: Sequence[str] = (), directory: Path | None = None) -> Self:
        """Read and check a study; nothing is written.

        Raises:
            UserError: for anything that cannot be run.
        """
        study = load_study(path)
        combinations = expand(study, path, words)
        for combination in combinations:
            combination.config(study.seeds[0])
        directory = directory or study.directory or Path("studies") / study.name
        check_directory(directory, study.name)
        return cls(study, combinations, directory, _command(path, words))

    def complete(self, workers: int | None, console: Console) -> int:
        """Run all that is missing; returns the exit code.

        Raises:
            UserError: before anything starts, when something could not be run.
        """
        jobs = self.missing()
        self.check(jobs)
        failures = self.run(jobs, workers, console) if jobs else []
        for failure in failures:
            print(f"blocklocal: {failure.label}: {failure.error}", file=sys.stderr)
        return 1 if failures else 0

    def check(self, jobs: Sequence[Job]) -> None:
        """Check that all jobs could run, with their data and networks.

        Raises:
            UserError: naming the combination that could not.
        """
        wanted = {job.combination.key for job in jobs}
        read: tuple[DataSettings, Dataset] | None = None
        for combination in self.combinations:
            if combination.key in wanted:
                doing(f"checking {combination.label}")
                config = combination.config(self.study.seeds[0])
                known = read[1] if read is not None and read[0] == config.data else None
                try:
                    prepared = prepare(config, read=known)
                except UserError as error:
                    raise UserError(f"{combination.label}: {error}") from error
                read = config.data, prepared.dataset
                if not len(prepared.dataset.split(self.study.split)):
                    raise UserError(
                        f"split = {self.study.split!r} has no rows: use test or set data.validation"
                    )

    def run(self, jobs: Sequence[Job], workers: int | None, console: Console) -> list[Failure]:
        """Run jobs; what is finished stays, whatever happens to the others."""
        dirty = code_version()["git_dirty"]  # now: results may lie in the code's own repository
        with locked(self.directory):
            runs, costs = self._records()

            def finished(job: Job, result: Result) -> str:
                result["code"]["git_dirty"] = dirty
                labels = labels_of(job.combination, job.seed)
                record = {**labels, "command": self.command, **result}
                (runs if job.kind == "run" else costs).add(job.label, record)
                return self._said(job, record)

            with handled() as stopping, StudyProgress(console, len(jobs)) as progress:
                stopping.left = "; the same command goes on"
                count = workers or self.study.workers or os.cpu_count() or 1
                return run_jobs(jobs, count, finished, progress)

    def adopt(self, path: Path) -> tuple[int, int]:
        """Add the runs of a file that belong to this study: how many are new, how many in all.

        Raises:
            UserError: when none does.
        """
        found = belonging(read_runs(path), self.combinations, self.study.seeds)
        if not found:
            raise UserError(
                f"no run of {path} has the settings of a run of {self.study.name}: give another "
                "file, or the study with which its runs were made"
            )
        added = 0
        with locked(self.directory):
            runs, _ = self._records()
            for combination, seed, record in found:
                version = record["code"].get("torch", "")
                if runs.find(combination.config(seed), version) is None:
                    runs.add(Job("run", combination, seed).label, record)
                    added += 1
        return added, len(found)

    def report(self) -> Summary:
        """Write the report of the runs that there are, of whatever version of torch."""
        summary = self.summary()
        with locked(self.directory):
            pictures = draw(summary, self.directory)
            results = json.dumps(summary.as_json(), indent=1, allow_nan=False) + "\n"
            for name, text in (
                ("report.md", page(summary, pictures)),
                ("results.json", results),
            ):
                replace_record(self.directory / name, [text.encode()])
        return summary

    def summary(self) -> Summary:
        """The numbers of the runs that there are.

        Raises:
            UserError: when there are none.
        """
        runs, (_, all_costs) = self._runs(), self._records()
        if not runs:
            raise UserError(f"{self.directory} has no runs of this study: run it first")
        first = self.study.seeds[0]
        costs = {
            c.key: record
            for c in self.combinations
            if (record := all_costs.find(c.config(first), TORCH, exactly=False)) is not None
        }
        return summarise(self.study, self.combinations, runs, costs)

    def missing(self) -> list[Job]:
        """What is not there yet; seeds outermost, so that no rule has two runs before all have one.

        A run counts with the version of torch that it would be repeated with.
        """
        runs, costs = self._records()
        first = self.study.seeds[0]
        jobs = [Job("costs", combination, first) for combination in self.combinations]
        missing = [job for job in jobs if costs.find(job.config, TORCH) is None]
        jobs = [Job("run", c, seed) for seed in self.study.seeds for c in self.combinations]
        return missing + [job for job in jobs if runs.find(job.config, TORCH) is None]

    def has_runs(self) -> bool:
        """Whether a report has anything to say."""
        return bool(self._runs())

    def _runs(self) -> dict[Key, dict[int, Record]]:
        """The runs of each combination by seed, of whatever version of torch."""
        runs, _ = self._records()
        found: dict[Key, dict[int, Record]] = {}
        for combination in self.combinations:
            for seed in self.study.seeds:
                record = runs.find(combination.config(seed), TORCH, exactly=False)
                if record is not None:
                    found.setdefault(combination.key, {})[seed] = record
        return found

    def _records(self) -> tuple[Records, Records]:
        return Records(self.directory, "runs"), Records(self.directory, "costs")

    def _said(self, job: Job, record: Record) -> str:
        if job.kind == "costs":
            return "counted"
        metric = metric_of([record], self.study.metric)
        value = value_of(record, self.study.split, metric)
        unit = "%" if metric == "accuracy" else ""
        return f"{metric} {value:.2f}{unit} in {record['seconds']:.0f} s"


def _command(path: Path, words: Sequence[str]) -> str:
    """The command as others can give it: files by their names alone."""
    shown = []
    for word in words:
        key, _, value = word.partition("=")
        is_file = key.startswith("data.") and "/" in value
        shown.append(f"{key}={Path(value).name}" if is_file else word)
    study = path.name if path.is_absolute() else str(path)
    return shlex.join(["blocklocal", "compare", study, *shown])
